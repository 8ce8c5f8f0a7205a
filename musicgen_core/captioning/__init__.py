"""Captions of clips, written from their audio.

musicnn                music taggers: the networks, in batches
tensorflow_checkpoint  their weights, read without TensorFlow
tags                   the taggers' tags as one vocabulary of genres, instruments, moods and vocals
"""

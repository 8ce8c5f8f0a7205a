"""Captions of clips, written from their audio.

All functions take batches of clips of equal length on any device, mono, [B, samples].

musicnn                music taggers: the networks, in batches
tensorflow_checkpoint  their weights, read without TensorFlow
clap                   tagger for any labels, by a CLAP model
labels                 its labels
taggers                the tagger that settings choose, and what identifies it
tempo                  beats a minute, and whether they are steady
key                    root and mode
levels                 loudness, silence, clipping
speech                 share of speech
spectra                power spectra, in parts that fit the memory
"""

"""Captions of clips, written from their audio.

The measurements take batches of clips of equal length on any device, mono, [B, samples]. Unlike those of `analysis`,
which know the project's own synthesized music, they are for any recording, and have a confidence.

archive                the clips of an archive, measured
measuring              clips of any lengths, measured in batches; their fields
sentences              descriptions, composed from the fields
metadata               the fields and descriptions in `metadata.jsonl`, merged with what a person wrote
versions               what measured the clips
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

"""Constants of MusicGen's EnCodec at 32 kHz (Copet et al. 2023, section 3.1)."""

from __future__ import annotations

SAMPLE_RATE = 32_000  # Hz
FRAME_RATE = 50  # frames/s
CODEBOOKS = 4
CARDINALITY = 2048  # codes in a codebook
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE

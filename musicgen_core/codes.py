"""The codes of MusicGen's models: EnCodec's at 32 kHz (Copet et al. 2023, section 3.1), of one or two channels."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE_RATE = 32_000  # Hz
FRAME_RATE = 50  # frames/s
CODEBOOKS = 4
CARDINALITY = 2048  # codes in a codebook
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAME_RATE
STEREO_SUFFIX = "-stereo"
"""Ends the identity of a stereo model's codec, whose weights are those of a mono model's"""


@dataclass(frozen=True)
class CodeShape:
    """The shape of a model's codes.

    Attributes:
        channels: audio channels. The codebooks of two channels alternate: 0 left, 0 right, 1 left, 1 right, …
        cardinality: codes of a codebook.
        delays: [codebooks], the steps by which the language model's sequence delays each codebook.
    """

    channels: int = 1
    cardinality: int = CARDINALITY
    delays: tuple[int, ...] = tuple(range(CODEBOOKS))

    @property
    def codebooks(self) -> int:
        """Return the number of codebooks of all channels, K."""
        return len(self.delays)

    @property
    def special(self) -> int:
        """Return the token that fills positions where the delay pattern has no code."""
        return self.cardinality

    def __str__(self) -> str:
        """Return the shape as errors show it."""
        return f"{'mono' if self.channels == 1 else 'stereo'} ({self.codebooks} codebooks)"

    @property
    def most_delay(self) -> int:
        """Return the largest delay in steps."""
        return max(self.delays)


MONO = CodeShape()
STEREO = CodeShape(channels=2, delays=tuple(k for k in range(CODEBOOKS) for _ in range(2)))
"""The shapes of Meta's models, whose codebooks are delayed by a step each, alike for both channels"""

"""Loops: their length in whole bars, and decoding whose end runs into its beginning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen_core.captioning.tempo import measure_tempo
from musicgen_core.codec import CONTEXT_SECONDS, Codec
from musicgen_core.codes import FRAME_RATE, SAMPLES_PER_FRAME

BEATS = 4
"""Beats of a bar"""
ENDING_SECONDS = 2.0
"""Length of the ending of a loop without a beat; otherwise it is a bar"""


@dataclass(frozen=True)
class Loop:
    """A loop to make.

    Attributes:
        tempo: in bpm; None: that of the music, as it is measured.
        candidates: how many endings are tried.
    """

    tempo: float | None
    candidates: int


@dataclass(frozen=True)
class LoopLength:
    """The length of a loop.

    Attributes:
        frames: in all.
        ending: the last frames, which lead back to the beginning: a bar, at most half of the loop.
        bars: in all; None for music without a beat.
    """

    frames: int
    ending: int
    bars: int | None

    @property
    def tempo(self) -> float | None:
        """The tempo in bpm at which these frames are whole bars; None for music without a beat."""
        return self.bars and self.bars * BEATS * 60 * FRAME_RATE / self.frames


def loop_length(wanted: int, tempo: float | None) -> LoopLength:
    """Return the length of whole bars of 4 beats, at least one, that is nearest to the wanted number of frames.

    A bar isn't a whole number of frames of 20 ms at most tempos; the loop is, so its tempo differs by up to 10 ms.
    """
    if tempo is None:
        return LoopLength(wanted, min(round(ENDING_SECONDS * FRAME_RATE), wanted // 2), None)
    bar = BEATS * 60 / tempo * FRAME_RATE
    bars = max(1, round(wanted / bar))
    frames = round(bars * bar)
    return LoopLength(frames, min(round(bar), frames // 2), bars)


def tempo_of(wav: Tensor) -> float | None:
    """Return the tempo of audio [channels, samples] at 32 kHz in bpm, as captions measure it; None without a beat."""
    bpm = measure_tempo(wav.mean(dim=0, keepdim=True)).bpm.item()
    return None if bpm != bpm else bpm


def decode_circularly(codec: Codec, codes: Tensor) -> Tensor:
    """Decode the codes [K, frames] of a loop to wav [channels, samples], each end within the sound of the other.

    They are decoded behind and before copies of themselves, of at least 5 s on each side, which are dropped.
    """
    frames, context = codes.shape[-1], CONTEXT_SECONDS * FRAME_RATE
    repeated = codes[:, torch.arange(-context, frames + context) % frames]
    skipped = context * SAMPLES_PER_FRAME
    return codec.decode(repeated[None])[0, :, skipped : skipped + frames * SAMPLES_PER_FRAME]

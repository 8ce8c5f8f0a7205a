"""Mix decoded audio with any number of channels down to mono, block by block; its stereo can be kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.errors import ClipRejected
from musicgen_core.language import message

AudioArray = NDArray[np.float32]

BLOCK = 1 << 20  # samples of all channels decoded at once: with fewer, 16 threads wait for the GIL most of the time
_LOUDEST = 2.0**32  # allows floats on the scale of 32-bit integers; for louder audio the codec's output is garbage


class Sound(Protocol):
    """An open sound file; a subset of soundfile.SoundFile."""

    @property
    def frames(self) -> int: ...
    @property
    def channels(self) -> int: ...
    @property
    def samplerate(self) -> int: ...

    def read(self, *, out: AudioArray) -> AudioArray:
        """Decode the next frames into `out` [frames, channels]; return the filled part."""


@dataclass(frozen=True)
class Mono:
    """Mean of a sound's channels, with checks.

    Attributes:
        samples: [frames], as many as could be decoded.
        not_finite: number of samples of any channel that are NaN or infinite.
        peak: maximum absolute sample of the mean.
        cancelled: whether non-silent channels cancelled to silence somewhere.
        stereo: [2, frames], the two channels, or the mean twice if there are not two; None: it was not asked for.
    """

    samples: AudioArray
    not_finite: int
    peak: float
    cancelled: bool
    stereo: AudioArray | None = None


def check_size(sound: Sound, max_bytes: int) -> None:
    """Check the size of the mono signal.

    Raises:
        ClipRejected: the mono signal exceeds `max_bytes`, at its own rate or at 32 kHz.
    """
    needed = 4 * sound.frames * max(1.0, SAMPLE_RATE / sound.samplerate)
    if needed > max_bytes:
        raise ClipRejected(
            message(
                "it lasts {seconds:,.0f} s, which takes {needed:,.2f} GiB as mono fp32, more than max_clip_gib "
                "({most:g})",
                seconds=sound.frames / sound.samplerate,
                needed=needed / 2**30,
                most=max_bytes / 2**30,
            ),
            message("Cut it into shorter clips, or raise max_clip_gib"),
        )


def mix_down(sound: Sound, keep_stereo: bool = False) -> Mono:
    """Return the mean of the channels, decoded block by block, so that memory is independent of their number.

    Invalid samples propagate to the mean, which is faster to check than all channels.
    """
    mono = np.empty(sound.frames, dtype=np.float32)
    stereo = np.empty((2, sound.frames), dtype=np.float32) if keep_stereo else None
    buffer = np.empty((min(sound.frames, max(1, BLOCK // sound.channels)), sound.channels), dtype=np.float32)
    decoded = not_finite = 0
    peak, cancelled = 0.0, False
    # libsndfile may return more than it declares for a damaged MP3.
    while decoded < sound.frames and len(block := sound.read(out=buffer[: sound.frames - decoded])):
        mean = mono[decoded : decoded + len(block)]
        _mean_of_channels(block, mean)
        if stereo is not None:
            stereo[:, decoded : decoded + len(block)] = block.T if sound.channels == 2 else mean
        low, high = float(mean.min()), float(mean.max())  # NaN if any sample is
        peak = max(peak, -low, high)
        if not (math.isfinite(low) and math.isfinite(high)):
            not_finite += int(np.count_nonzero(~np.isfinite(block)))
        elif low == high == 0:
            cancelled |= bool(block.any())
        decoded += len(block)
    return Mono(mono[:decoded], not_finite, peak, cancelled, None if stereo is None else stereo[:, :decoded])


def check_sound(mono: Mono) -> None:
    """Check the samples of a clip.

    Raises:
        ClipRejected: the clip is empty, silent, not finite, or too loud for audio.
    """
    if not len(mono.samples):
        raise ClipRejected(message("it holds no samples"))
    if mono.not_finite:
        raise ClipRejected(message("{number:,} of its samples are not finite", number=mono.not_finite))
    if mono.peak > _LOUDEST:
        raise ClipRejected(message("its samples reach {peak:.3g}, which is no audio", peak=mono.peak))
    if mono.cancelled and not mono.peak:
        raise ClipRejected(message("its channels cancel each other out"))
    if not mono.peak:
        raise ClipRejected(message("all its samples are zero"))


def _mean_of_channels(block: AudioArray, out: AudioArray) -> None:
    """Average [frames, channels] to [frames], column by column: `mean(axis=1)` of few channels is 20 times slower."""
    channels = block.shape[1]
    if channels == 1:
        out[:] = block[:, 0]
        return
    with np.errstate(over="ignore", invalid="ignore"):
        np.add(block[:, 0], block[:, 1], out=out)
        for channel in range(2, channels):
            out += block[:, channel]
        out /= channels

"""Separate clips into what is encoded and what carries the melody, in batches of segments of several clips.

A clip is split into segments of 7.8 s that overlap by a quarter. Overlapping results are averaged with weights that
fall linearly from the middle of a segment to its ends. A shorter segment, at the end of a clip, is centred in a window
with the audio around it, zero-padded beyond the clip. `demucs.apply.apply_model` without random shifts does the same,
one segment at a time; random shifts would give a clip other codes in each run.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen_core.data.audio import DecodedClip, resample
from musicgen_core.errors import Cancelled, ClipRejected, DeviceError
from musicgen_core.language import message
from musicgen_core.melody import extract_chroma
from musicgen_core.separation.separator import RHYTHM, VOCALS, Separator

logger = logging.getLogger(__name__)
K = TypeVar("K")

OVERLAP = 0.25
SILENCE = 1e-8
"""Added to the deviation, as demucs does, so that silence can be divided by it"""
WINDOW_BATCHES = 4
"""Number of batches' worth of clips that may wait for a segment of the first"""


@dataclass(frozen=True)
class Separation:
    """What clips are separated for.

    Attributes:
        separator: several callers may share it.
        removed: the audio of a clip becomes the sum of its sources but these, at `separator.rate`; empty: it stays.
        extract_chroma: whether clips get the chroma of their sources but drums, bass and those that are removed.
    """

    separator: Separator
    removed: frozenset[str] = VOCALS
    extract_chroma: bool = False

    @property
    def audio_identity(self) -> str:
        """Return the identity of the model that the audio results from; empty if it stays as it is."""
        return self.separator.identity if self.removed else ""

    @property
    def melody_identity(self) -> str:
        """Return the identity of the model that the chroma results from; empty if this gives none."""
        return self.separator.identity if self.extract_chroma else ""

    @property
    def left_out(self) -> list[frozenset[str]]:
        """Return the sources that each sum leaves out: that of the audio, and that of the melody."""
        audio = [self.removed] if self.removed else []
        return audio + ([RHYTHM | self.removed] if self.extract_chroma else [])


def separated_clips(
    separation: Separation,
    clips: Iterable[tuple[K, DecodedClip | ClipRejected]],
    cancelled: Callable[[], bool] = lambda: False,
    channels: int = 1,
) -> Generator[tuple[K, DecodedClip | ClipRejected]]:
    """Yield the separated clips, in input order; rejections pass through in place.

    Args:
        clips: stereo, at any rate.
        cancelled: polled before each batch.
        channels: of the result, 1 or 2.

    Raises:
        Cancelled: `cancelled` returned True.
        DeviceError: not even one segment fits the GPU.
    """
    separator = separation.separator
    waiting: deque[_Track[K]] = deque()  # in order
    batch: list[_Segment] = []
    for key, clip in clips:
        track = _Track(key, clip, separation, channels)
        waiting.append(track)
        for segment in track.segments():
            batch.append(segment)
            if len(batch) >= separator.batch_segments:
                _separate(separation, batch, cancelled)
                batch = []
        if batch and len(waiting) > WINDOW_BATCHES * separator.batch_segments:  # the others were rejected
            _separate(separation, batch, cancelled)
            batch = []
        yield from _finished(waiting)
    if batch:
        _separate(separation, batch, cancelled)
    yield from _finished(waiting)


class _Track(Generic[K]):
    """A clip in progress: its audio, and the weighted sums of its segments' results."""

    def __init__(self, key: K, clip: DecodedClip | ClipRejected, separation: Separation, channels: int) -> None:
        self.key, self.clip = key, clip
        self._separation, self._channels = separation, channels
        self._length = separation.separator.segment_samples
        self._open = 0
        if isinstance(clip, ClipRejected):
            return
        self.audio = torch.from_numpy(resample(clip.samples, clip.rate, separation.separator.rate))  # [2, samples]
        mono = self.audio.mean(dim=0)
        self.mean, self.deviation = mono.mean(), mono.std() + SILENCE
        self._sums = [torch.zeros_like(mono) for _ in separation.left_out]
        if separation.removed and channels == 2:
            self._sums[0] = torch.zeros_like(self.audio)
        self._weights = torch.zeros_like(mono)

    def segments(self) -> Iterator[_Segment]:
        if isinstance(self.clip, ClipRejected):
            return
        starts = range(0, self.audio.shape[1], int((1 - OVERLAP) * self._length))
        self._open = len(starts)
        for start in starts:
            yield _Segment(self, start, min(self._length, self.audio.shape[1] - start))

    def window(self, start: int) -> Tensor:
        """Return the normalised audio [2, segment_samples] from a sample on, with zeros where the clip has none."""
        end = start + self._length
        first, last = max(0, start), min(self.audio.shape[1], end)
        normalised = (self.audio[:, first:last] - self.mean) / self.deviation
        return F.pad(normalised, (first - start, end - last))

    def add(self, start: int, found: Tensor) -> None:
        """Add the results of a segment, [sums, 2, samples]."""
        samples = found.shape[-1]
        weights = _triangle(self._length)[:samples]
        part = slice(start, start + samples)
        for total, own in zip(self._sums, found, strict=True):
            total[..., part] += weights * (own.mean(dim=0) if total.dim() == 1 else own)
        self._weights[part] += weights
        self._open -= 1

    def result(self) -> DecodedClip | ClipRejected | None:
        """Return the separated clip, or its rejection; None while segments are missing."""
        clip, rate = self.clip, self._separation.separator.rate
        if isinstance(clip, ClipRejected):
            return clip
        if self._open:
            return None
        sums = [total.div_(self._weights).mul_(self.deviation).add_(self.mean).numpy() for total in self._sums]
        chroma = None
        if self._separation.extract_chroma:
            melody = torch.from_numpy(resample(sums[-1], rate))
            chroma = extract_chroma(melody[None])[0].numpy()
        if self._separation.removed:
            return DecodedClip(sums[0], rate, clip.duration, chroma)
        mean = (clip.samples[0] + clip.samples[1]) / 2  # as `decode` mixes down
        return replace(clip, samples=mean if self._channels == 1 else clip.samples, chroma=chroma)


@dataclass(frozen=True)
class _Segment:
    """A part of a clip, of at most `segment_samples`."""

    track: _Track[Any]
    start: int
    samples: int

    def window(self, length: int) -> Tensor:
        """Return a window [2, length] of the clip's audio with the segment in its middle."""
        return self.track.window(self.start - (length - self.samples) // 2)

    def deliver(self, found: Tensor) -> None:
        lead = (found.shape[-1] - self.samples) // 2
        self.track.add(self.start, found[..., lead : lead + self.samples])


def _finished(waiting: deque[_Track[K]]) -> Iterator[tuple[K, DecodedClip | ClipRejected]]:
    while waiting and (result := waiting[0].result()) is not None:
        yield waiting.popleft().key, result


def _separate(separation: Separation, batch: Sequence[_Segment], cancelled: Callable[[], bool]) -> None:
    """Compute a batch of segments, in halves if the GPU's memory doesn't suffice."""
    if cancelled():
        raise Cancelled("separating clips was cancelled")
    separator = separation.separator
    found = _try(separation, batch)
    if found is not None:
        for segment, samples in zip(batch, found.unbind(dim=1), strict=True):
            segment.deliver(samples)
        return
    torch.cuda.empty_cache()
    if len(batch) == 1:
        raise DeviceError(
            message(
                "{seconds:.0f} s of audio don't fit the memory that is free on the GPU",
                seconds=separator.segment_samples / separator.rate,
            ),
            message("Stop other programs on the GPU, or tokenize with --device cpu"),
        )
    half = math.ceil(len(batch) / 2)
    if half < separator.batch_segments:
        separator.batch_segments = half
        logger.warning("out of GPU memory: batches of Demucs are %d segments from here on", half)
    _separate(separation, batch[:half], cancelled)
    _separate(separation, batch[half:], cancelled)


def _try(separation: Separation, batch: Sequence[_Segment]) -> Tensor | None:
    """Return the sums [sums, B, 2, samples]; None if out of memory. Keeping the error would keep its allocations."""
    windows = torch.stack([segment.window(separation.separator.segment_samples) for segment in batch])
    try:
        return separation.separator.without(windows, separation.left_out)
    except torch.OutOfMemoryError:
        return None


@lru_cache(maxsize=1)
def _triangle(length: int) -> Tensor:
    """Return the weights of a segment's samples, which are largest in its middle."""
    half = length // 2
    weights = torch.cat([torch.arange(1, half + 1), torch.arange(length - half, 0, -1)])
    return weights / weights.max()

"""Encode clips to codes in batches of similar lengths. The next batch starts before the codes of the last are read."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_core.codec import ENCODE_SECONDS, Codec, Codes, StartedBatch
from musicgen_core.codes import FRAME_RATE
from musicgen_core.data.audio import DecodedClip
from musicgen_core.errors import ClipRejected, DeviceError
from musicgen_core.language import message
from musicgen_core.melody import Chroma, Excerpt

logger = logging.getLogger(__name__)
K = TypeVar("K")

LEAD_SECONDS, TAIL_SECONDS = 5, 1
"""Context of a segment, whose codes are dropped: the LSTM's memory, and the convolutions' look-ahead.

Segment and context are whole seconds, so a segment begins at a whole sample of any rate and a whole frame of codes.
"""
MAX_CLIPS = 1024
"""Maximum clips per batch"""
MAX_FILLING = 1.25
"""Maximum ratio of a padded batch to the audio in it"""
WINDOW_BATCHES = 4
"""Number of batches' worth of clips that may wait for others of their length"""
LENGTH_STEP = 1.05
"""Clips whose lengths differ by no more than this share a bucket."""


@dataclass(frozen=True)
class Encoded:
    """The codes of a clip.

    Attributes:
        codes: [K, frames].
        seconds: duration at the file's own sample rate.
        chroma: pitch classes of its melody, [chroma frames]; None for a model that takes no melody.
    """

    codes: Codes
    seconds: float
    chroma: Chroma | None = None


def encode_clips(
    codec: Codec, clips: Iterable[tuple[K, DecodedClip | ClipRejected]]
) -> Generator[tuple[K, Encoded | ClipRejected]]:
    """Encode clips of any lengths and rates in batches of at most `codec.batch_seconds`; several callers may share it.

    For a stereo codec the clips are stereo, otherwise mono.

    Yields the codes of each clip in input order, whatever it is batched with; rejections pass through in place. If the
    codec's model takes a melody, they come with the clip's chroma, of the whole clip at once.

    Raises:
        DeviceError: not even one segment fits the GPU.
    """
    waiting: deque[_Track[K]] = deque()  # in order; the first may still be in a bucket
    buckets = _Buckets()
    queue = _InFlight(codec)
    for key, clip in clips:
        track = _Track(key, clip, queue.started_seconds, codec.takes_melody)
        waiting.append(track)
        for segment in track.segments():
            full = buckets.add(segment, codec.batch_seconds)
            if full:
                queue.start(full)
        # Clips of rare lengths, and those behind them, don't wait indefinitely.
        held = max(buckets.seconds, queue.started_seconds - waiting[0].begun_at)
        if held > WINDOW_BATCHES * codec.batch_seconds or len(waiting) > WINDOW_BATCHES * MAX_CLIPS:
            for batch in buckets.drain(codec.batch_seconds):
                queue.start(batch)
        yield from _finished(waiting)
    for batch in buckets.drain(codec.batch_seconds):
        queue.start(batch)
    queue.finish()
    yield from _finished(waiting)


@dataclass
class _Track(Generic[K]):
    """A clip in progress, with the codes of its finished segments, and their chroma.

    `begun_at`: seconds of audio started before it.
    """

    key: K
    clip: DecodedClip | ClipRejected | None
    begun_at: float
    has_chroma: bool
    parts: list[tuple[Codes, Chroma | None] | None] = field(default_factory=list)
    seconds: float = 0.0
    chroma: Chroma | None = None

    def segments(self) -> Iterator[_Segment]:
        """Yield the segments to encode: the whole clip, or segments with context on both sides."""
        clip, self.clip = self.clip, None
        if not isinstance(clip, DecodedClip):
            self.clip = clip
            return
        self.seconds, self.chroma = clip.duration, clip.chroma
        new = ENCODE_SECONDS - LEAD_SECONDS - TAIL_SECONDS
        starts = range(0, math.ceil(clip.seconds), new) if clip.seconds > ENCODE_SECONDS else range(1)
        self.parts = [None] * len(starts)
        for index, start in enumerate(starts):
            last = index == len(starts) - 1
            lead = min(start, LEAD_SECONDS)
            end = None if last else (start + new + TAIL_SECONDS) * clip.rate
            samples = clip.samples[..., (start - lead) * clip.rate : end]
            keep = slice(lead * FRAME_RATE, None if last else (lead + new) * FRAME_RATE)
            excerpt = None
            if self.has_chroma and clip.chroma is None:
                excerpt = Excerpt(start - lead, start, None if last else start + new)
            yield _Segment(samples, clip.rate, keep, excerpt, partial(self.parts.__setitem__, index))

    def result(self) -> Encoded | ClipRejected | None:
        """Return the codes or the rejection; None while codes are missing."""
        if isinstance(self.clip, ClipRejected):
            return self.clip
        done = [part for part in self.parts if part is not None]
        if len(done) < len(self.parts):
            return None
        codes, chroma = [part[0] for part in done], [part[1] for part in done if part[1] is not None]
        return Encoded(
            codes=codes[0] if len(codes) == 1 else np.concatenate(codes, axis=1),
            seconds=self.seconds,
            chroma=np.concatenate(chroma) if chroma else self.chroma,
        )


@dataclass(frozen=True)
class _Segment:
    """Audio to encode.

    Attributes:
        samples: [samples] or [2, samples], fp32 at `rate`.
        keep: the part of its codes that counts.
        excerpt: the part of its clip that it is, if its chroma is needed.
        done: called with this part of its codes, and with its chroma.
    """

    samples: NDArray[np.float32]
    rate: int
    keep: slice
    excerpt: Excerpt | None
    done: Callable[[tuple[Codes, Chroma | None]], None]

    @property
    def seconds(self) -> float:
        return self.samples.shape[-1] / self.rate


def _finished(waiting: deque[_Track[K]]) -> Iterator[tuple[K, Encoded | ClipRejected]]:
    while waiting and (result := waiting[0].result()) is not None:
        yield waiting.popleft().key, result


@dataclass
class _Bucket:
    """Segments of one rate, with the seconds of the longest and of all together."""

    segments: list[_Segment] = field(default_factory=list)
    longest: float = 0.0
    seconds: float = 0.0

    def add(self, segment: _Segment) -> None:
        self.segments.append(segment)
        self.longest = max(self.longest, segment.seconds)
        self.seconds += segment.seconds

    def is_full(self, batch_seconds: float) -> bool:
        """Return whether a batch has no room for another segment as long as the longest."""
        return self.longest * (len(self.segments) + 1) > batch_seconds or len(self.segments) == MAX_CLIPS

    def fits(self, segment: _Segment, batch_seconds: float) -> bool:
        """Return whether a segment that is no longer than the others can join their batch."""
        filled = self.longest * (len(self.segments) + 1)
        alike = segment.rate == self.segments[0].rate and filled <= MAX_FILLING * (self.seconds + segment.seconds)
        return alike and not self.is_full(batch_seconds)


class _Buckets:
    """Segments that wait for others of the same rate and a similar length."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self.seconds = 0.0

    def add(self, segment: _Segment, batch_seconds: float) -> list[_Segment] | None:
        """Add a segment; return a full batch if this completes one."""
        key = (segment.rate, math.floor(math.log(segment.samples.shape[-1], LENGTH_STEP)))
        bucket = self._buckets.setdefault(key, _Bucket())
        bucket.add(segment)
        self.seconds += segment.seconds
        if not bucket.is_full(batch_seconds):
            return None
        del self._buckets[key]
        self.seconds -= bucket.seconds
        return bucket.segments

    def drain(self, batch_seconds: float) -> Iterator[list[_Segment]]:
        """Yield all remaining segments, in batches of lengths as similar as possible."""
        segments = sorted(
            (segment for bucket in self._buckets.values() for segment in bucket.segments),
            key=lambda segment: (segment.rate, -segment.samples.shape[-1]),
        )
        self._buckets.clear()
        self.seconds = 0.0
        batch = _Bucket()
        for segment in segments:
            if batch.segments and not batch.fits(segment, batch_seconds):
                yield batch.segments
                batch = _Bucket()
            batch.add(segment)
        if batch.segments:
            yield batch.segments


class _InFlight:
    """The batch that is being encoded. Its codes are read once the next batch has started."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._segments: Sequence[_Segment] = ()
        self._batch: StartedBatch | None = None
        self.started_seconds = 0.0

    def start(self, segments: Sequence[_Segment]) -> None:
        batch = self._try(segments)
        if batch is None:
            self._halve(segments)
            return
        self.started_seconds += sum(segment.seconds for segment in segments)
        before, self._segments = self._segments, segments
        batch_before, self._batch = self._batch, batch
        _deliver(before, batch_before)

    def finish(self) -> None:
        segments, self._segments = self._segments, ()
        batch, self._batch = self._batch, None
        _deliver(segments, batch)

    def _try(self, segments: Sequence[_Segment]) -> StartedBatch | None:
        """Start a batch; return None if out of memory. Keeping the error would keep the attempt's allocations."""
        excerpts = [segment.excerpt for segment in segments if segment.excerpt is not None]  # of all, or of none
        try:
            return self._codec.start([segment.samples for segment in segments], segments[0].rate, excerpts)
        except torch.OutOfMemoryError:
            return None

    def _halve(self, segments: Sequence[_Segment]) -> None:
        self.finish()
        torch.cuda.empty_cache()
        if len(segments) == 1:
            raise DeviceError(
                message(
                    "{seconds:.0f} s of audio don't fit the memory that is free on the GPU", seconds=segments[0].seconds
                ),
                message("Stop other programs on the GPU, or tokenize with --device cpu"),
            )
        half = math.ceil(len(segments) / 2)
        fits = half * max(segment.seconds for segment in segments)
        self._codec.batch_seconds = min(fits, self._codec.batch_seconds)
        logger.warning("out of GPU memory: batches are %.0f s of audio from here on", self._codec.batch_seconds)
        self.start(segments[:half])
        self.start(segments[half:])


def _deliver(segments: Sequence[_Segment], batch: StartedBatch | None) -> None:
    if batch is None:
        return
    of_segments: Sequence[Chroma | None] = batch.chroma() or [None] * len(segments)
    for segment, codes, chroma in zip(segments, batch.codes(), of_segments, strict=True):
        segment.done((codes[:, segment.keep], chroma))

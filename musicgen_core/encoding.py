"""Clips to codes in batches of like lengths, with the next batch begun before the last one's codes are waited for."""

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

from musicgen_core.codec import PIECE_SECONDS, Codec, Codes
from musicgen_core.codes import FRAME_RATE
from musicgen_core.data.audio import DecodedClip
from musicgen_core.errors import ClipRejected, DeviceError
from musicgen_core.language import message

logger = logging.getLogger(__name__)
K = TypeVar("K")

LEAD_SECONDS, TAIL_SECONDS = 5, 1
"""Context of a piece, whose codes are dropped: what the LSTM remembers, and what the convolutions see ahead.

All three are whole seconds: a piece then begins at a whole sample of any rate and at a whole frame of codes.
"""
MAX_CLIPS = 1024
"""In a batch."""
MAX_FILLING = 1.25
"""A batch with its filling over the clips in it."""
WINDOW_BATCHES = 4
"""So many batches' worth of clips may wait for others of their length."""
LENGTH_STEP = 1.05
"""Clips whose lengths differ by no more than this share a bucket."""


@dataclass(frozen=True)
class Encoded:
    """Codes [4, frames] of a clip, and its duration in seconds at the file's own rate."""

    codes: Codes
    seconds: float


class BatchEncoder:
    """Encodes clips of any lengths and rates in batches.

    Args:
        codec: the codec, with its `batch_seconds`; several encoders may share one.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def encode(
        self, clips: Iterable[tuple[K, DecodedClip | ClipRejected]]
    ) -> Generator[tuple[K, Encoded | ClipRejected]]:
        """Codes of each clip, in the order given; rejections pass through at their place.

        The codes don't depend on what a clip is batched with.

        Raises:
            DeviceError: not even one piece fits the GPU.
        """
        waiting: deque[_Track[K]] = deque()  # in order; the first may still be in a bucket
        buckets = _Buckets()
        queue = _InFlight(self._codec)
        for key, clip in clips:
            track = _Track(key, clip, queue.started_seconds)
            waiting.append(track)
            for piece in track.pieces():
                full = buckets.add(piece, self._codec.batch_seconds)
                if full:
                    queue.start(full)
            # Clips of rare lengths don't wait for ever, and those behind them neither.
            held = max(buckets.seconds, queue.started_seconds - waiting[0].begun_at)
            if held > WINDOW_BATCHES * self._codec.batch_seconds or len(waiting) > WINDOW_BATCHES * MAX_CLIPS:
                for batch in buckets.drain(self._codec.batch_seconds):
                    queue.start(batch)
            yield from _finished(waiting)
        for batch in buckets.drain(self._codec.batch_seconds):
            queue.start(batch)
        queue.finish()
        yield from _finished(waiting)


@dataclass
class _Track(Generic[K]):
    """A clip on its way, and the codes of those of its pieces that are done.

    `begun_at`: how many seconds of audio had been started before it.
    """

    key: K
    clip: DecodedClip | ClipRejected | None
    begun_at: float
    codes: list[Codes | None] = field(default_factory=list)
    seconds: float = 0.0

    def pieces(self) -> Iterator[_Piece]:
        """What of it is to be encoded: all at once, or pieces with context on both sides."""
        clip, self.clip = self.clip, None
        if not isinstance(clip, DecodedClip):
            self.clip = clip
            return
        self.seconds = clip.seconds
        new = PIECE_SECONDS - LEAD_SECONDS - TAIL_SECONDS
        starts = range(0, math.ceil(self.seconds), new) if self.seconds > PIECE_SECONDS else range(1)
        self.codes = [None] * len(starts)
        for index, start in enumerate(starts):
            last = index == len(starts) - 1
            lead = min(start, LEAD_SECONDS)
            end = None if last else (start + new + TAIL_SECONDS) * clip.rate
            samples = clip.samples[(start - lead) * clip.rate : end]
            keep = slice(lead * FRAME_RATE, None if last else (lead + new) * FRAME_RATE)
            yield _Piece(samples, clip.rate, keep, partial(self.codes.__setitem__, index))

    def result(self) -> Encoded | ClipRejected | None:
        """None while codes are missing."""
        if isinstance(self.clip, ClipRejected):
            return self.clip
        parts = [codes for codes in self.codes if codes is not None]
        if len(parts) < len(self.codes):
            return None
        return Encoded(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1), self.seconds)


@dataclass(frozen=True)
class _Piece:
    """samples [samples] fp32 at `rate`; of its codes `keep` goes to `done`."""

    samples: NDArray[np.float32]
    rate: int
    keep: slice
    done: Callable[[Codes], None]

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate


def _finished(waiting: deque[_Track[K]]) -> Iterator[tuple[K, Encoded | ClipRejected]]:
    while waiting and (result := waiting[0].result()) is not None:
        yield waiting.popleft().key, result


@dataclass
class _Bucket:
    """Pieces of one rate, the seconds of the longest and those of all together."""

    pieces: list[_Piece] = field(default_factory=list)
    longest: float = 0.0
    seconds: float = 0.0

    def add(self, piece: _Piece) -> None:
        self.pieces.append(piece)
        self.longest = max(self.longest, piece.seconds)
        self.seconds += piece.seconds

    def is_full(self, batch_seconds: float) -> bool:
        """Whether a batch has no room for another one of the longest's length."""
        return self.longest * (len(self.pieces) + 1) > batch_seconds or len(self.pieces) == MAX_CLIPS

    def fits(self, piece: _Piece, batch_seconds: float) -> bool:
        """Whether a piece no longer than the others can join a batch of them."""
        filled = self.longest * (len(self.pieces) + 1)
        alike = piece.rate == self.pieces[0].rate and filled <= MAX_FILLING * (self.seconds + piece.seconds)
        return alike and not self.is_full(batch_seconds)


class _Buckets:
    """Pieces that wait for others of their rate and about their length."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[int, int], _Bucket] = {}
        self.seconds = 0.0

    def add(self, piece: _Piece, batch_seconds: float) -> list[_Piece] | None:
        """→ a full batch, if this piece makes one."""
        key = (piece.rate, math.floor(math.log(len(piece.samples), LENGTH_STEP)))
        bucket = self._buckets.setdefault(key, _Bucket())
        bucket.add(piece)
        self.seconds += piece.seconds
        if not bucket.is_full(batch_seconds):
            return None
        del self._buckets[key]
        self.seconds -= bucket.seconds
        return bucket.pieces

    def drain(self, batch_seconds: float) -> Iterator[list[_Piece]]:
        """Everything, in batches as like as it allows."""
        pieces = sorted(
            (piece for bucket in self._buckets.values() for piece in bucket.pieces),
            key=lambda piece: (piece.rate, -len(piece.samples)),
        )
        self._buckets.clear()
        self.seconds = 0.0
        batch = _Bucket()
        for piece in pieces:
            if batch.pieces and not batch.fits(piece, batch_seconds):
                yield batch.pieces
                batch = _Bucket()
            batch.add(piece)
        if batch.pieces:
            yield batch.pieces


class _InFlight:
    """The batch that is being encoded. Its codes are waited for once the next one has begun."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._pieces: Sequence[_Piece] = ()
        self._fetch: Callable[[], list[Codes]] = list
        self.started_seconds = 0.0

    def start(self, pieces: Sequence[_Piece]) -> None:
        fetch = self._try(pieces)
        if fetch is None:
            self._halve(pieces)
            return
        self.started_seconds += sum(piece.seconds for piece in pieces)
        before, self._pieces = self._pieces, pieces
        fetch_before, self._fetch = self._fetch, fetch
        _deliver(before, fetch_before())

    def finish(self) -> None:
        pieces, self._pieces = self._pieces, ()
        fetch, self._fetch = self._fetch, list
        _deliver(pieces, fetch())

    def _try(self, pieces: Sequence[_Piece]) -> Callable[[], list[Codes]] | None:
        """None: out of memory. The error isn't kept, since it would keep what the attempt had allocated."""
        try:
            return self._codec.start([piece.samples for piece in pieces], pieces[0].rate)
        except torch.OutOfMemoryError:
            return None

    def _halve(self, pieces: Sequence[_Piece]) -> None:
        self.finish()
        torch.cuda.empty_cache()
        if len(pieces) == 1:
            raise DeviceError(
                message(
                    "{seconds:.0f} s of audio don't fit the memory that is free on the GPU", seconds=pieces[0].seconds
                ),
                message("Stop other programs on the GPU, or tokenize with --device cpu"),
            )
        half = math.ceil(len(pieces) / 2)
        fits = half * max(piece.seconds for piece in pieces)
        self._codec.batch_seconds = min(fits, self._codec.batch_seconds)
        logger.warning("out of GPU memory: batches are %.0f s of audio from here on", self._codec.batch_seconds)
        self.start(pieces[:half])
        self.start(pieces[half:])


def _deliver(pieces: Sequence[_Piece], codes: Sequence[Codes]) -> None:
    for piece, found in zip(pieces, codes, strict=True):
        piece.done(found[:, piece.keep])

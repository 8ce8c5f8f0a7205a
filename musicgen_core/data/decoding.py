"""Read and decode the clips of an archive ahead of their use, in threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

from musicgen_core.data.audio import DecodedClip, decode, resample
from musicgen_core.data.members import Member
from musicgen_core.errors import ClipRejected
from musicgen_core.prefetch import prefetch

AHEAD_BYTES = 512 << 20
"""Bytes of an archive's clips that may be unpacked and decoded ahead of their use"""
LEAST_COST = 4 << 20
"""Minimum cost of a clip, so that many small ones don't use up the process's file descriptors"""


@dataclass(frozen=True)
class Counts:
    """Progress in an archive: rows and rejections so far, and its total clips (None for a tar until its end)."""

    rows: int
    rejected: int
    total: int | None


OnClip = Callable[[Counts], None]


def decoded_clips(
    members: Iterator[Member],
    max_bytes: int,
    cancelled: Callable[[], bool] = lambda: False,
    stereo: bool = False,
    rate: int | None = None,
) -> Generator[tuple[str, DecodedClip | ClipRejected]]:
    """Yield name and audio, or the rejection, of each member, in order.

    Args:
        members: clips of an archive.
        max_bytes: maximum size of a clip's audio, as for `decode`.
        cancelled: polled while libsndfile decodes.
        stereo: whether to keep both channels, see `decode`.
        rate: if given, clips are resampled to this rate in Hz.

    Raises:
        Cancelled: `cancelled` returned True while a clip was decoded.
    """

    def load(member: Member) -> tuple[str, DecodedClip | ClipRejected]:
        try:
            with member.open() as file:
                clip = decode(file, max_bytes, cancelled, stereo=stereo)
        except ClipRejected as error:
            return member.name, error
        if rate is not None:
            clip = DecodedClip(resample(clip.samples, clip.rate, rate), rate, clip.seconds)
        return member.name, clip

    cost = 2 if stereo else 1  # bytes in memory for each of a stereo file of 16 bits
    return prefetch(_decoders(), members, load, lambda member: max(LEAST_COST, cost * member.size), AHEAD_BYTES)


@cache
def _decoders() -> ThreadPoolExecutor:
    """Return the decoding threads, shared by all archives of the process.

    With more than eight, threads wait for the GIL between NumPy's calls and decode less in total (bench/RESULTS.md).
    """
    return ThreadPoolExecutor(min(os.cpu_count() or 1, 8), thread_name_prefix="decode")

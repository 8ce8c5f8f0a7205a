"""The clips of a tokens directory that are near duplicates of one another, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from upath import UPath

from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.levels import CodeVectors
from musicgen_core.data.shards import ShardReport, described_clips
from musicgen_core.errors import TokensError
from musicgen_core.language import message


@dataclass(frozen=True)
class ClipName:
    """Stem of an archive, and name of a clip in it."""

    stem: str
    clip: str

    def __str__(self) -> str:
        return f"{self.stem}: {self.clip}"


@dataclass(frozen=True)
class RepeatedClips:
    """Clips of a shard that are near duplicates of earlier clips, which stay.

    Attributes:
        stem: stem of the shard's archive.
        content: `ShardReport.content` of the shard in which they were found.
        originals: the clip that each is a near duplicate of, by row.
    """

    stem: str
    content: str
    originals: dict[int, ClipName]

    def check_rows(self, report: ShardReport) -> None:
        """Check that the shard still has these rows: another job may have removed some.

        Raises:
            TokensError: the shard's report is another one.
        """
        if report.content != self.content:
            raise _changed(self.stem)


def near_duplicates_in(
    tokens: UPath, codec: str, folder: Path | None = None, vectors: Callable[[], CodeVectors] | None = None
) -> list[list[ClipName]]:
    """Return the clusters of near duplicates, each of two clips or more, in the order of stems and rows.

    Args:
        codec: identity of the shards' codec, as `shard_codec` returns it.
        folder: cache directory of the packed shards, as in `load_clips`.
        vectors: those of the codec's codes, as in `load_clips`.

    Raises:
        TokensError: as in `load_clips`, or a shard changed while it was read.
    """
    clips = load_clips(tokens, codec, folder, vectors=vectors)
    members: dict[int, list[int]] = defaultdict(list)
    for index, first in enumerate(clips.near_duplicates.tolist()):
        members[first].append(index)
    clusters = [cluster for cluster in members.values() if len(cluster) > 1]
    names = _names(tokens, clips, {index for cluster in clusters for index in cluster})
    return [[names[index] for index in cluster] for cluster in clusters]


def repeated_clips(
    tokens: UPath,
    codec: str,
    stems: Collection[str],
    folder: Path | None = None,
    vectors: Callable[[], CodeVectors] | None = None,
) -> list[RepeatedClips]:
    """Return the clips of each shard that are near duplicates of an earlier clip, for the shards that have any.

    Args:
        codec: identity of the shards' codec.
        stems: stems of the shards to look into.
        folder: cache directory of the packed shards, as in `load_clips`.
        vectors: those of the codec's codes, as in `load_clips`.

    Raises:
        TokensError: as in `near_duplicates_in`.
    """
    clips = load_clips(tokens, codec, folder, only=stems, vectors=vectors)
    originals = clips.originals()
    repeated = np.flatnonzero(originals != np.arange(len(originals)))
    names = _names(tokens, clips, originals[repeated].tolist())
    starts = accumulate((len(shard) for shard in clips.shards), initial=0)
    found = []
    for (stem, content), shard, start in zip(clips.fingerprints.items(), clips.shards, starts, strict=False):
        rows = repeated[(repeated >= start) & (repeated < start + len(shard))].tolist()
        if rows:
            found.append(RepeatedClips(stem, content, {row - start: names[int(originals[row])] for row in rows}))
    return found


def _names(tokens: UPath, clips: Clips, indices: Iterable[int]) -> dict[int, ClipName]:
    """Return the names of clips by index."""
    wanted = set(indices)
    names: dict[int, ClipName] = {}
    starts = accumulate((len(shard) for shard in clips.shards), initial=0)
    for stem, shard, start in zip(clips.fingerprints, clips.shards, starts, strict=False):
        if found := wanted.intersection(range(start, start + len(shard))):
            rows = described_clips(tokens, stem)
            if len(rows) != len(shard):
                raise _changed(stem)
            names |= {index: ClipName(stem, rows[index - start][0]) for index in found}
    return names


def _changed(stem: str) -> TokensError:
    return TokensError(
        message("the shard {name} changed while it was read", name=f"{stem}.parquet"),
        message("Run again when tokenize is done"),
    )

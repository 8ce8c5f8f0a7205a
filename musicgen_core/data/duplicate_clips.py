"""The clips of a tokens directory that are near duplicates of one another, by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from upath import UPath

from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.near_duplicates import originals_of
from musicgen_core.data.shards import described_clips
from musicgen_core.errors import TokensError
from musicgen_core.language import message


@dataclass(frozen=True)
class ClipName:
    """Stem of an archive, and name of a clip in it."""

    stem: str
    clip: str

    def __str__(self) -> str:
        return f"{self.stem}: {self.clip}"


def near_duplicates_in(tokens: UPath, codec: str, folder: Path | None = None) -> list[list[ClipName]]:
    """Return the clusters of near duplicates, each of two clips or more, in the order of stems and rows.

    Args:
        codec: identity of the shards' codec, as `shard_codec` returns it.
        folder: cache directory of the packed shards, as in `load_clips`.

    Raises:
        TokensError: as in `load_clips`, or a shard changed while it was read.
    """
    clips = load_clips(tokens, codec, folder)
    members: dict[int, list[int]] = defaultdict(list)
    for index, first in enumerate(clips.near_duplicates.tolist()):
        members[first].append(index)
    clusters = [cluster for cluster in members.values() if len(cluster) > 1]
    names = _names(tokens, clips, {index for cluster in clusters for index in cluster})
    return [[names[index] for index in cluster] for cluster in clusters]


def repeated_clips(
    tokens: UPath, codec: str, stems: Collection[str], folder: Path | None = None
) -> dict[str, dict[int, ClipName]]:
    """Return the clips that are near duplicates of an earlier clip, which stays: its name, by stem and row.

    Args:
        codec: identity of the shards' codec.
        stems: stems of the shards to look into.
        folder: cache directory of the packed shards, as in `load_clips`.

    Raises:
        TokensError: as in `near_duplicates_in`.
    """
    clips = load_clips(tokens, codec, folder, only=stems)
    originals = originals_of(clips.signatures)
    repeated = np.flatnonzero(originals != np.arange(len(originals)))
    names = _names(tokens, clips, originals[repeated].tolist())
    found: dict[str, dict[int, ClipName]] = defaultdict(dict)
    starts = np.cumsum([0, *map(len, clips.shards)])
    stems = list(clips.fingerprints)
    for index in repeated.tolist():
        number = int(np.searchsorted(starts, index, side="right")) - 1
        found[stems[number]][index - int(starts[number])] = names[int(originals[index])]
    return dict(found)


def _names(tokens: UPath, clips: Clips, indices: Iterable[int]) -> dict[int, ClipName]:
    """Return the names of clips by index."""
    wanted = set(indices)
    names: dict[int, ClipName] = {}
    starts = accumulate((len(shard) for shard in clips.shards), initial=0)
    for stem, shard, start in zip(clips.fingerprints, clips.shards, starts, strict=False):
        if found := wanted.intersection(range(start, start + len(shard))):
            rows = described_clips(tokens, stem)
            if len(rows) != len(shard):
                raise TokensError(
                    message("the shard {name} changed while it was read", name=f"{stem}.parquet"),
                    message("Run again when tokenize is done"),
                )
            names |= {index: ClipName(stem, rows[index - start][0]) for index in found}
    return names

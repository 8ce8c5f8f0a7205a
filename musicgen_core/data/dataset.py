"""Clips for training: shards memory-mapped from the local cache, and their stable split."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.levels import CodeVectors, Versions, reduced
from musicgen_core.data.near_duplicates import Signatures, first_of_each, joined_keys, originals_of
from musicgen_core.data.packed_shards import PackedShard
from musicgen_core.data.shard_codec import no_melodies
from musicgen_core.data.shards import (
    ShardReport,
    copies_among,
    described_clips,
    read_report,
    stems_without_chroma,
)
from musicgen_core.data.token_cache import THREADS, Lease, TokenCache
from musicgen_core.data.training_text import TextVariation
from musicgen_core.errors import TokensError
from musicgen_core.language import message
from musicgen_core.stages import announce
from musicgen_core.texts import MAX_CHARACTERS
from musicgen_core.wording import counted, named

LEAST_HELD_OUT = 8
ENOUGH_CLIPS = 40
"""Number of clips from which on at least LEAST_HELD_OUT are held out"""

_TEXT_STREAM = 1
"""Distinguishes the random numbers of texts from those of crops"""

SplitBy = Literal["any_level", "near_duplicates", "groups", "clips"]
"""What the validation split holds out as a whole: groups of clips, joined where they have near duplicates in common, at
any level. Runs of earlier versions held out groups that were joined only by near duplicates of about the same level,
groups that were not joined, or single clips."""
_NAMED_CLIPS = 3


def _no_vectors() -> CodeVectors:
    raise ValueError("clips that were loaded without the vectors of their codes have no profiles")


@dataclass(frozen=True)
class Clips:
    """All clips of a directory of shards, in the order of stems and rows. Memory holds 12 bytes of each.

    Attributes:
        shards: codes and descriptions, memory-mapped.
        fingerprints: `ShardReport.content` of each archive, by stem.
        skipped: stems of incomplete shards, which are left out.
        added: stems of archives that were not requested.
        copies: stems of duplicate shards, which are left out, with the stems of their originals.
        lease: lease that keeps the shards in the cache.
        vectors: those of the codec's codes, `reduced`, with which near duplicates at another level are recognised.
    """

    shards: Sequence[PackedShard]
    fingerprints: dict[str, str]
    skipped: list[str]
    added: Sequence[str] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    lease: Lease | None = None
    vectors: Callable[[], CodeVectors] = _no_vectors

    def __len__(self) -> int:
        return len(self.frames)

    def problems(self) -> Iterator[str]:
        """Yield a sentence on each incomplete or duplicate shard."""
        for stem in self.skipped:
            yield f"the shard {stem} is not whole and is left out; run tokenize again"
        for copy, original in self.copies.items():
            yield f"the shard {copy} is left out: it holds the same archive as {original}"
        originals: dict[str, str] = {}
        for stem, content in self.fingerprints.items():
            original = originals.setdefault(content.split()[0], stem)
            if original != stem:  # the run was started with both
                yield (
                    f"the shards {original} and {stem} are of the same archive: each of their clips counts twice, as "
                    "since this run began; a new run takes one of them"
                )

    @cached_property
    def frames(self) -> NDArray[np.int32]:
        """Return the number of frames of each clip, [clips]."""
        return np.concatenate([shard.frames for shard in self.shards])

    @cached_property
    def codebooks(self) -> int:
        """Return the number of codebooks, K."""
        return len(self.codes_of(0))

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """Return a stable hash of archive and member for each clip, [clips]."""
        return np.concatenate([shard.hashes for shard in self.shards])

    def split_keys(self, by: SplitBy, among: NDArray[np.int64] | None = None) -> NDArray[np.uint64]:
        """Return the hashes that `split` decides by: those of groups, or of clips as in runs of earlier versions.

        The key of groups that near duplicates join is that of their first clip. Archives that are added behind the
        others therefore move no clip to the other side, unless a new clip joins two groups of different sides, which
        moves the later one. An archive that is sorted before others may move the groups that it joins.

        Args:
            among: indices of the clips to use, as if there were no others; all by default.
        """
        some = slice(None) if among is None else among
        if by == "clips":
            return self.hashes[some]
        groups = np.concatenate([shard.groups for shard in self.shards])[some]
        if by == "groups":
            return groups
        if by == "near_duplicates":
            return joined_keys(groups, first_of_each(self._signatures[some]))
        return joined_keys(groups, self.near_duplicates if among is None else self._clusters(among))

    @cached_property
    def near_duplicates(self) -> NDArray[np.int64]:
        """Return for each clip the index of the first clip of its cluster of near duplicates, [clips]."""
        return self._clusters(np.arange(len(self)))

    def originals(self) -> NDArray[np.int64]:
        """Return the `near_duplicates.originals_of` the clips, [clips]."""
        return originals_of(self._signatures, self.near_duplicates, self._versions.among)

    def _clusters(self, some: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._versions.join(first_of_each(self._signatures[some]), some)

    @property
    def _versions(self) -> Versions:
        profiles = np.concatenate([shard.profiles for shard in self.shards])
        return Versions(profiles, self.codes_of, self.vectors)

    @property
    def _signatures(self) -> Signatures:
        return np.concatenate([shard.signatures for shard in self.shards])

    def description(self, index: int) -> str | None:
        shard, row = self._find(index)
        return shard.description(row)

    def text_of(self, index: int, variation: TextVariation, seed: int, epoch: int) -> str | None:
        """Return the text of a clip in an epoch, with fields added at random. Deterministic in its arguments."""
        shard, row = self._find(index)
        description, fields = shard.description(row), shard.fields(row)
        if not fields:
            return description
        rng = np.random.default_rng([seed, epoch, int(self.hashes[index]), _TEXT_STREAM])
        return variation.apply(description, fields, rng)

    def codes_of(self, index: int) -> NDArray[np.uint16]:
        """Return the codes of a clip, [K, frames], read-only.

        Raises:
            TokensError: the codes were damaged in the cache.
        """
        shard, row = self._find(index)
        return shard.codes(row)

    def chroma_of(self, index: int) -> NDArray[np.uint8]:
        """Return the pitch classes of a clip's melody, [chroma frames].

        Raises:
            TokensError: the clip was tokenized without them.
        """
        shard, row = self._find(index)
        chroma = shard.chroma(row)
        if chroma is None:
            stem, row = self.location(index)
            raise TokensError(
                message("clip {number} of the shard {stem} has no melody", number=row + 1, stem=stem),
                message("Delete the shard and run tokenize again"),
            )
        return chroma

    def location(self, index: int) -> tuple[str, int]:
        """Return the stem of a clip's archive and the clip's row in the shard."""
        shard, row = self._find(index)
        number = next(i for i, one in enumerate(self.shards) if one is shard)
        return list(self.fingerprints)[number], row

    def _find(self, index: int) -> tuple[PackedShard, int]:
        """Return the shard of a clip and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        number = bisect_right(self._starts, index) - 1
        return self.shards[number], index - self._starts[number]

    @cached_property
    def _starts(self) -> list[int]:
        return list(accumulate((len(shard) for shard in self.shards[:-1]), initial=0))


def load_clips(
    tokens: UPath,
    codec: str,
    folder: Path | None = None,
    only: Collection[str] | None = None,
    melody_model: str | None = None,
    vectors: Callable[[], CodeVectors] | None = None,
) -> Clips:
    """Load every complete shard of `tokens` through a cache on the local disk.

    Args:
        codec: identity of the model's codec; shards of another codec are refused.
        folder: cache directory, which takes 12 kB per 30 s clip (24 kB in stereo). By default the user's cache.
        only: stems of the archives to load. All if None, or if none of them is found. If None, duplicates of an
            archive under several names are loaded once.
        melody_model: name of the model if it takes a melody; shards without chroma are then refused.
        vectors: those of the codec's codes. Without them, near duplicates at another level are not recognised.

    Raises:
        TokensError: no complete shards, damaged shards, codes of another codec, no chroma, or no space in the cache.
    """
    announce(message("reading the clips in {tokens}", tokens=tokens))
    reports, skipped = _find_shards(tokens)
    if not any(report.clips for report in reports.values()):
        raise TokensError(
            message(
                "there are no tokenized clips in {tokens}{skipped}",
                tokens=tokens,
                skipped=message(" (not whole: {shards})", shards=", ".join(skipped[:5])) if skipped else "",
            ),
            message("Tokenize first (uv run musicgen-flows tokenize), or check the path"),
        )
    added = [stem for stem in reports if only is not None and stem not in only]
    if len(added) == len(reports):
        added = []
    copies = copies_among(reports)
    left_out = copies if only is None else added
    reports = {stem: report for stem, report in reports.items() if stem not in left_out}
    if melody_model is not None and (without := stems_without_chroma(reports)):
        raise no_melodies(without, tokens, melody_model)
    in_components = None if vectors is None else cache(lambda: reduced(vectors()))
    shards, lease = TokenCache(folder).packed(tokens, reports, codec, in_components)
    fingerprints = {
        stem: report.content if melody_model is None else report.content_with_chroma for stem, report in reports.items()
    }
    return Clips(
        shards=list(shards.values()),
        fingerprints=fingerprints,
        skipped=skipped,
        added=[stem for stem in added if stem not in copies],
        copies=copies if only is None else {},
        lease=lease,
        vectors=in_components or _no_vectors,
    )


def _find_shards(tokens: UPath) -> tuple[dict[str, ShardReport], list[str]]:
    """Return the reports of complete shards by stem, sorted, and the stems of incomplete ones."""
    if not storage.is_local(tokens):
        tokens.fs.invalidate_cache(tokens.path)  # the cached listing may be outdated
    stems = sorted(path.stem for path in tokens.iterdir() if path.suffix == ".parquet") if tokens.is_dir() else []
    with ThreadPoolExecutor(THREADS) as pool:  # remote reads are latency-bound
        reports = dict(zip(stems, pool.map(lambda stem: read_report(tokens, stem), stems), strict=True))
    whole = {stem: report for stem, report in reports.items() if report is not None}
    return whole, [stem for stem in stems if stem not in whole]


def cut_descriptions(clips: Clips, tokens: storage.Location) -> list[str]:
    """Return a sentence on the clips whose descriptions are truncated before encoding, or none."""
    rows = {
        stem: pc.indices_nonzero(pc.greater(pc.utf8_length(shard.table.column("description")), MAX_CHARACTERS))
        for stem, shard in zip(clips.fingerprints, clips.shards, strict=True)
    }
    count = sum(map(len, rows.values()))
    if not count:
        return []
    names = list(islice((name for stem in rows for name in _names(tokens, stem, rows[stem].to_pylist())), _NAMED_CLIPS))
    return [
        message(
            "{descriptions} of more than {most:,} characters cut to that: {names}; to choose what stays, shorten them "
            "and tokenize again",
            descriptions=counted(count, "description"),
            most=MAX_CHARACTERS,
            names=named(names, count),
        )
    ]


def _names(tokens: storage.Location, stem: str, rows: list[int]) -> Iterator[str]:
    if not rows:
        return
    try:
        clips = [name for name, _ in described_clips(storage.as_path(tokens), stem)]
    except TokensError:  # training reads the cached copy
        clips = []
    for row in rows:
        yield f"{stem}: {clips[row]}" if row < len(clips) else f"{stem}: clip {row + 1}"


def join(clips: Clips, more: Clips) -> Clips:
    """Concatenate clips. Valid as long as `more` exists, which holds the lease of its own shards."""
    return replace(
        clips, shards=[*clips.shards, *more.shards], fingerprints={**clips.fingerprints, **more.fingerprints}
    )


def split(keys: NDArray[np.uint64], validation_fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (training, validation) indices. The split depends only on keys, so it is stable when archives are added.

    Clips with equal keys are on one side. With two keys or more and a fraction above 0, each side has at least one.
    Otherwise all clips are used for training.

    Args:
        keys: `Clips.split_keys`, [clips].
    """
    everything = np.arange(len(keys))
    if validation_fraction == 0 or len(keys) < 2 or keys.min() == keys.max():
        return everything, everything[:0]
    held_out = keys.astype(np.float64) / 2.0**64 < validation_fraction
    held_out[keys == keys.min()] = True
    if held_out.all():
        held_out[keys == keys.max()] = False
    return everything[~held_out], everything[held_out]


def fraction_to_hold_out(keys: NDArray[np.uint64], asked: float) -> float:
    """Return the fraction at which `split` holds out at least 8 clips, or `asked` if that holds out more.

    The loss of fewer clips is too noisy. With fewer than 40 clips, 8 would be too many, and `asked` is returned.
    """
    if not asked or len(keys) < ENOUGH_CLIPS:
        return asked
    last = np.partition(keys, LEAST_HELD_OUT - 1)[LEAST_HELD_OUT - 1]
    return max(asked, float(np.nextafter(float(last) / 2.0**64, 1.0)))

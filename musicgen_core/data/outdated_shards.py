"""Recognise shards that lack clips of their archive, although its fingerprint is the same."""

from __future__ import annotations

from itertools import islice

from upath import UPath

from musicgen_core.data.archive import ArchiveFile
from musicgen_core.data.captions import Captions
from musicgen_core.data.exclusion import excluded_clips, is_duplicate, originals_named
from musicgen_core.data.members import CLIP_SUFFIXES, DAMAGED, is_clip
from musicgen_core.data.shards import ShardReport, shard_paths


def lacks_clips(archive: ArchiveFile, report: ShardReport) -> bool:
    """Return whether the archive has clips that can be read now, but could not when its shard was written.

    Raises:
        ArchiveError: the archive can't be read.
    """
    return was_repaired(archive, report) or _has_other_suffixes(archive, report)


def was_repaired(archive: ArchiveFile, report: ShardReport) -> bool:
    """Return whether a clip that was rejected as damaged is readable now.

    A zip's fingerprint is derived from its directory, which is the same in a fresh copy of a damaged zip.
    """
    damaged = [entry.clip for entry in report.rejected if entry.reason.startswith(DAMAGED)]
    return bool(damaged) and archive.opened.count_damaged(damaged) < len(damaged)


def lacks_originals(tokens: UPath, report: ShardReport, metadata: Captions | None = None) -> bool:
    """Return whether a clip was left out as a near duplicate of one that is no more.

    Its shard was deleted since, or the metadata now say that it is to be left out itself.

    Args:
        metadata: loaded with the settings that say what to leave out.
    """
    repeated = [originals_named(each) for each in report.rejected if is_duplicate(each)]
    stems = {stem for originals in repeated for stem, _ in originals}
    there = {stem for stem in stems if shard_paths(tokens, stem)[0].exists()}

    def is_left(stem: str, clip: str) -> bool:
        return stem in there and not (metadata and excluded_clips(metadata, stem, [clip]))

    return any(not any(is_left(*original) for original in originals) for originals in repeated)


def _has_other_suffixes(archive: ArchiveFile, report: ShardReport) -> bool:
    """Return whether members are clips now that an earlier version ignored. A tar is read for it."""
    if report.clip_suffixes == CLIP_SUFFIXES:
        return False
    names = islice(archive.opened.clip_names(), report.limited_to)
    return any(not is_clip(name, report.clip_suffixes) for name in names)

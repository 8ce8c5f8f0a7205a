"""Shards of the same archive under several names, whose clips would count several times."""

from __future__ import annotations

from collections.abc import Mapping

from musicgen_core.data.shards import ShardReport


def copies_among(reports: Mapping[str, ShardReport]) -> dict[str, str]:
    """Return the stems of copies, each with that of its original: the shard of most clips, then of the shorter name.

    Args:
        reports: of whole shards, by their stems.
    """
    originals: dict[str, str] = {}
    copies = {}
    for stem in sorted(reports, key=lambda stem: (-reports[stem].clips, len(stem), stem)):
        original = originals.setdefault(reports[stem].fingerprint, stem)
        if original != stem:
            copies[stem] = original
    return copies

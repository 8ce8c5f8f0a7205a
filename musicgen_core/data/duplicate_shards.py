"""Detection of shards of the same archive under several names, whose clips would be counted repeatedly."""

from __future__ import annotations

from collections.abc import Mapping

from musicgen_core.data.shards import ShardReport


def copies_among(reports: Mapping[str, ShardReport]) -> dict[str, str]:
    """Return the original of each duplicate, by stems: the shard with most clips, then with the shorter name.

    Args:
        reports: reports of complete shards, by stem.
    """
    originals: dict[str, str] = {}
    copies = {}
    for stem in sorted(reports, key=lambda stem: (-reports[stem].clips, len(stem), stem)):
        original = originals.setdefault(reports[stem].fingerprint, stem)
        if original != stem:
            copies[stem] = original
    return copies

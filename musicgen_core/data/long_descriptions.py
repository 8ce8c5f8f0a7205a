"""Report descriptions in shards of earlier versions that exceed the text encoder's limit."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow.compute as pc

from musicgen_core import storage
from musicgen_core.data.dataset import Clips
from musicgen_core.data.shards import described_clips
from musicgen_core.errors import TokensError
from musicgen_core.language import message
from musicgen_core.texts import MAX_CHARACTERS
from musicgen_core.wording import counted

_NAMED = 3


def cut_descriptions(clips: Clips, tokens: storage.Location) -> list[str]:
    """Return a sentence on the clips whose descriptions are truncated before encoding, or none."""
    rows = {
        stem: pc.indices_nonzero(pc.greater(pc.utf8_length(shard.table.column("description")), MAX_CHARACTERS))
        for stem, shard in zip(clips.fingerprints, clips.shards, strict=True)
    }
    count = sum(map(len, rows.values()))
    if not count:
        return []
    names = list(islice((name for stem in rows for name in _names(tokens, stem, rows[stem].to_pylist())), _NAMED))
    listed = ", ".join(names)
    if count > len(names):
        listed = message("{names} and {number:,} more", names=listed, number=count - len(names))
    return [
        message(
            "{descriptions} of more than {most:,} characters cut to that: {names}; to choose what stays, shorten them "
            "and tokenize again",
            descriptions=counted(count, "description"),
            most=MAX_CHARACTERS,
            names=listed,
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

"""Clips that `tokenize --exclude` leaves out, by the fields of the metadata."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from musicgen_core.data.captions import Captions
from musicgen_core.data.shards import Rejected
from musicgen_core.data.standing_out import needed_fields
from musicgen_core.errors import MetadataError
from musicgen_core.exclusions import Exclusion, measured
from musicgen_core.language import message
from musicgen_core.wording import counted

if TYPE_CHECKING:
    from musicgen_core.data.duplicate_clips import ClipName

_NEAR_DUPLICATE = "near duplicate of "
_PREFIXES = ("silent: ", "clipped: ", "speech: ", "vocals: ")
_MEASURE = message("Run uv run musicgen-flows caption first, which measures every clip and keeps what is written there")


def excluded_clips(captions: Captions, stem: str, names: Iterable[str]) -> list[Rejected]:
    """Return the clips of an archive that are left out, each with its reason.

    Args:
        captions: loaded with the settings that say what to leave out.
        stem: the archive's stem.
        names: names of the archive's clips.
    """
    found = []
    for name in names:
        texts = captions.find(name, stem)
        if texts is not None and (reason := next(filter(None, texts.traits.values()), "")):
            found.append(Rejected(name, str(reason)))
    return found


def is_duplicate(rejected: Rejected) -> bool:
    """Return whether a clip was left out as a near duplicate of another."""
    return rejected.reason.startswith(_NEAR_DUPLICATE)


def originals_named(rejected: Rejected) -> tuple[tuple[str, str], ...]:
    """Return stem and name of the clip that a near duplicate repeats; several if names with `: ` leave it open."""
    parts = rejected.reason.removeprefix(_NEAR_DUPLICATE).split(": ")
    return tuple((": ".join(parts[:end]), ": ".join(parts[end:])) for end in range(1, len(parts)))


def duplicate_of(clip: str, original: ClipName) -> Rejected:
    """Return the rejection of a clip that is a near duplicate of another."""
    return Rejected(clip, str(message("near duplicate of {clip}", clip=original)))


def fingerprint_without(fingerprint: str, rejected: Iterable[Rejected]) -> str:
    """Return the fingerprint of a shard from which near duplicates are removed; the given one if none are.

    Args:
        fingerprint: the shard's, with the near duplicates or without some.
        rejected: the rejected clips of the shard.
    """
    whole = fingerprint.partition("-")[0]
    names = sorted(each.clip for each in rejected if is_duplicate(each))
    return f"{whole}-{hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]}" if names else whole


def is_excluded(rejected: Rejected) -> bool:
    """Return whether a clip was left out by the metadata, rather than because it can't be used."""
    return rejected.reason.startswith(_PREFIXES)


def check_exclusions(
    captions: Captions | None, kinds: Sequence[Exclusion], names_by_archive: Iterable[tuple[str, Sequence[str]]]
) -> list[str]:
    """Return remarks on clips of which the metadata don't tell whether to leave them out.

    Args:
        captions: loaded with the settings that say what to leave out; None without metadata.
        kinds: what is left out.
        names_by_archive: the stem of each archive, and the names of its clips.

    Raises:
        MetadataError: the metadata tell it of no clip, for one of the kinds.
    """
    kinds = measured(kinds)
    if not kinds:
        return []
    if captions is None:
        raise MetadataError(
            message(
                "--exclude {kinds} needs measurements of the clips, and there is no metadata file", kinds=_given(kinds)
            ),
            _MEASURE,
        )
    clips, untold = 0, Counter[Exclusion]()
    for stem, names in names_by_archive:
        clips += len(names)
        for name in names:
            texts = captions.find(name, stem)
            untold.update(kind for kind in kinds if texts is None or kind not in texts.traits)
    if unknown := [kind for kind in kinds if clips and untold[kind] == clips]:
        raise MetadataError(
            message(
                "--exclude {kinds} needs measurements of the clips, and in {source} no clip has {fields}{example}",
                kinds=_given(unknown),
                source=captions.source,
                fields=", ".join(dict.fromkeys(field for kind in unknown for field in needed_fields(kind)[:1])),
                example="".join(
                    message(" that can be used ({found})", found=each) for each in captions.wrong.examples[:1]
                ),
            ),
            _MEASURE,
        )
    return [
        message(
            "clips without a usable {field} in the metadata, {number:,} of {clips}: not left out as {kind}; caption "
            "measures it, unless it rejects a clip",
            number=untold[kind],
            clips=counted(clips, "clip"),
            kind=kind,
            field=needed_fields(kind)[0],
        )
        for kind in kinds
        if untold[kind]
    ]


def _given(kinds: Sequence[Exclusion]) -> str:
    return ",".join(kinds)

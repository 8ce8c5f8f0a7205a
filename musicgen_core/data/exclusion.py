"""Clips that `tokenize --exclude` leaves out, by the fields of the metadata."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from musicgen_core.data.captions import Captions
from musicgen_core.data.shards import Rejected
from musicgen_core.data.standing_out import needed_fields
from musicgen_core.errors import MetadataError
from musicgen_core.exclusions import Exclusion
from musicgen_core.language import message
from musicgen_core.wording import counted

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


def is_excluded(rejected: Rejected) -> bool:
    """Return whether a clip was left out by `--exclude`, rather than because it can't be used."""
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
                "--exclude {kinds} needs measurements of the clips, and in {source} no clip has {fields}",
                kinds=_given(unknown),
                source=captions.source,
                fields=", ".join(dict.fromkeys(field for kind in unknown for field in needed_fields(kind)[:1])),
            ),
            _MEASURE,
        )
    return [
        message(
            "{number:,} of {clips} are kept whether {kind} or not: the metadata don't have their {field}, which "
            "caption measures unless it rejects them",
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

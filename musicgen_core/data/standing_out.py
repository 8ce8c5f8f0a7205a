"""Clips that stand out by the fields of their metadata: silent, clipped, speech and vocals.

Fields count whoever wrote them, captioning or a person. `tokenize --exclude` leaves such clips out.

    silent    at least 90 % of the clip's time is silent (`silence`)
    clipped   at least 1 % of the samples are clipped (`clipping`): more than the peaks of a loud master
    speech    at least 50 % of the clip's time has speech (`speech`); read text has 91 to 97 %, by bench/RESULTS.md
    vocals    a tag of the category vocals, other than `no vocals` and its synonyms (`vocals`, or among `tags`)
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from musicgen_core.data.caption_fields import CONFIDENCE, TAGS, texts_of, with_categories
from musicgen_core.exclusions import Exclusion
from musicgen_core.language import message
from musicgen_core.music_tags import NO_VOCALS, VOCABULARY

SHARES: dict[Exclusion, tuple[str, float]] = {
    "silent": ("silence", 0.9),
    "clipped": ("clipping", 0.01),
    "speech": ("speech", 0.5),
}
"""The field of each kind that is a share, and its threshold"""
_VOCALS = "vocals"
_WITHOUT = {name.lower() for name in VOCABULARY["vocals"][NO_VOCALS]} | {NO_VOCALS, "none", "no"}


def needed_fields(kind: Exclusion) -> tuple[str, ...]:
    """Return the fields of which at least one tells whether a clip is of a kind."""
    return (SHARES[kind][0],) if kind in SHARES else (_VOCALS, TAGS)


def degree(entry: Mapping[str, Any], kind: Exclusion) -> float | None:
    """Return how far a clip is of a kind, from 0 to 1; None if its entry doesn't tell.

    For vocals it is the confidence of their tag, which is 1 where a person wrote it, and 0 without vocals.
    """
    if kind in SHARES:
        return share_of(entry, SHARES[kind][0])
    if all(entry.get(name) is None for name in needed_fields(kind)):
        return None
    return max((_confidence(entry, name) for name in vocals_of(entry)), default=0.0)


def is_of_kind(entry: Mapping[str, Any], kind: Exclusion) -> bool | None:
    """Return whether a clip is of a kind, by its threshold; None if its entry doesn't tell."""
    if kind in SHARES:
        found = degree(entry, kind)
        return None if found is None else found >= SHARES[kind][1]
    return None if all(entry.get(name) is None for name in needed_fields(kind)) else bool(vocals_of(entry))


def reason_for(entry: Mapping[str, Any], kind: Exclusion) -> str:
    """Return what makes a clip one of a kind, such as `silent: 97 % of its time`."""
    if kind not in SHARES:
        return message("vocals: {names}", names=", ".join(vocals_of(entry)))
    percent = f"{100 * (degree(entry, kind) or 0.0):.3g}"
    if kind == "clipped":
        return message("clipped: {percent} % of its samples", percent=percent)
    if kind == "silent":
        return message("silent: {percent} % of its time", percent=percent)
    return message("speech: {percent} % of its time", percent=percent)


def traits_of(entry: Mapping[str, Any], kinds: tuple[Exclusion, ...]) -> dict[Exclusion, str]:
    """Return the reason for each kind that a clip is of; an empty text for the others of which its entry tells."""
    found = {kind: is_of_kind(entry, kind) for kind in kinds}
    return {kind: reason_for(entry, kind) if found[kind] else "" for kind in kinds if found[kind] is not None}


def vocals_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the clip's vocals, none for `no vocals`."""
    return [text for text in texts_of(with_categories(entry).get(_VOCALS)) if text.lower() not in _WITHOUT]


def share_of(entry: Mapping[str, Any], name: str) -> float | None:
    """Return a field that is a share from 0 to 1, as a number or a text; None for anything else."""
    value = entry.get(name)
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and 0.0 <= (share := float(value)) <= 1.0:  # type: ignore[arg-type]
            return share
    return None


def _confidence(entry: Mapping[str, Any], tag: str) -> float:
    confidence = entry.get(CONFIDENCE)
    tags = confidence.get(TAGS) if isinstance(confidence, Mapping) else None
    value = share_of(tags, tag) if isinstance(tags, Mapping) else None
    return 1.0 if value is None else value

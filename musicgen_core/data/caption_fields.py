"""Fields of `metadata.jsonl` that describe a clip, beside its `path` and `description`.

Captioning writes them, people may correct them or write their own, and training may add them to the descriptions:

    tags          names of instruments, genres, moods and vocals, the likeliest first
    tempo         beats per minute; null if the clip has no clear beat
    tempo_steady  whether the tempo is the same throughout the clip; null without a tempo
    key           tonic and mode, such as "A minor"; null if unclear
    loudness      LUFS (ITU-R BS.1770); null if the clip is silent
    silence       share of the clip's time that is silent
    clipping      share of the samples that are clipped, of the mono mix, which is what the model is trained on
    speech        share of the clip's time with speech
    duration      seconds
    confidence    of tags, tempo, key and speech, from 0 to 1; the other fields are measured directly
    captioned_by  the programs that composed the description; absent if a person wrote it
    group         clips of one group, such as a song, are never on both sides of the validation split

`genre`, `instruments`, `mood` and `vocals` need not be written: they are the tags of these categories. Where they are
written, they take precedence. Captioning writes them for labels that the vocabulary doesn't have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from musicgen_core.music_tags import CATEGORIES, VOCABULARY, Category

TAGS, CONFIDENCE, CAPTIONED_BY, GROUP = "tags", "confidence", "captioned_by", "group"
DURATION = "duration"
MEASURED = (TAGS, "tempo", "tempo_steady", "key", "loudness", "silence", "clipping", "speech", DURATION, CONFIDENCE)

PREFIX = "prefix"
"""Among the texts for training: `caption_prefix`, which stays where the description is left out"""
_TEXTS = {
    "key": ("key",),
    "bpm": ("bpm",),
    "genre": ("genre",),
    "moods": ("mood",),
    "instrument": ("instruments",),
    "keywords": ("keywords", "vocals"),
}
"""Names under which audiocraft's `MusicInfo` adds fields to descriptions, and the fields of the metadata"""

_OTHER_NAMES = {"mood": "moods", "instruments": "instrument"}
"""audiocraft's names of fields"""
FASTEST_BPM = 1000.0

MetadataEntry = dict[str, Any]


def parse_entry(text: str) -> MetadataEntry | None:
    """Parse a JSON object; return None for anything else."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):  # the latter for brackets nested thousands deep
        return None
    return entry if isinstance(entry, dict) else None


def with_categories(entry: Mapping[str, Any]) -> MetadataEntry:
    """Return an entry with `genre`, `instruments`, `mood` and `vocals`, from its tags where it doesn't have them.

    Tags of no known category, such as those that a person added, are `keywords`. A tag that is written in one of these
    fields is in no other. audiocraft's names `moods` and `instrument` count, too.
    """
    found: dict[str, Any] = {}
    written = {text.lower() for category in VOCABULARY for text in texts_of(entry.get(category))}
    for tag in texts_of(entry.get(TAGS)):
        if tag.lower() in written:
            continue
        category: Category | str = CATEGORIES.get(tag.lower(), "keywords")
        found.setdefault(category, []).append(tag)
    found |= {name: entry[other] for name, other in _OTHER_NAMES.items() if entry.get(other)}
    return {**found, **entry}


def tempo_of(entry: Mapping[str, Any]) -> float | None:
    """Return the tempo in bpm, from `bpm` or a steady `tempo`, as a number or a text; None if there is none."""
    steady = None if entry.get("tempo_steady") is False else entry.get("tempo")
    for value in (entry.get("bpm"), steady):
        with suppress(TypeError, ValueError, OverflowError):
            if not isinstance(value, bool) and 0 < (bpm := float(value or 0)) < FASTEST_BPM:
                return bpm
    return None


def texts_for_training(entry: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts that training may add to a clip's description, under audiocraft's names."""
    whole = with_categories(entry)
    tempo = tempo_of(entry)
    whole["bpm"] = None if tempo is None else round(tempo)
    found = {}
    for name, sources in _TEXTS.items():
        if text := next((text for source in sources if (text := field_text(whole.get(source)))), None):
            found[name] = text
    return found


def texts_of(value: Any) -> list[str]:
    """Return the texts of a field: of a list, or of a text with commas, as people write it."""
    if not value:
        return []
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return [text for each in values if (text := field_text(each))]


def own_description(entry: Mapping[str, Any]) -> str | None:
    """Return the entry's `description`, if it is a string."""
    description = entry.get("description")
    return clean(description) if isinstance(description, str) else None


def field_text(value: Any) -> str | None:
    """Return a field as people write it: `120.0` → `120`, `true` → `yes`, a list with commas; None if empty.

    Whole numbers are written in full, others with six digits. Objects and nested lists give None.
    """
    if isinstance(value, list):
        return ", ".join(filter(None, map(_scalar_text, value))) or None
    return _scalar_text(value)


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else None  # NaN is pandas' null
    return clean(str(value)) if isinstance(value, int | str) else None


def clean(text: str) -> str | None:
    """Strip whitespace and replace lone surrogates, which UTF-8 can't encode, by `?`; None if nothing is left."""
    text = text.strip()
    return (text if text.isascii() else text.encode("utf-8", "replace").decode()) or None

"""Descriptions of clips, composed from the fields of their metadata: "slow ambient piano with soft strings, 70 bpm".

The fields may be measured or corrected by hand. Which of several wordings a clip gets depends on a hash of its name, so
that a model doesn't learn a single pattern, and so that the same clip always gets the same sentence.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from musicgen_core.data.caption_fields import (
    TAGS,
    MetadataEntry,
    field_text,
    tempo_of,
    texts_of,
    with_categories,
)
from musicgen_core.music_tags import CATEGORIES, NO_VOCALS

SLOW_BPM, FAST_BPM = 80.0, 140.0
"""Tempos below and above which a clip is called slow or fast, unless its mood says so"""
MOST_MOODS, MOST_GENRES, MOST_INSTRUMENTS = 1, 2, 4
"""Maximum number of tags of each kind in a sentence"""
_PACES = {"slow", "fast"}


class _Parts(NamedTuple):
    """The parts of a sentence; empty if unknown."""

    adjectives: str
    genre: str
    instruments: Sequence[str]
    vocals: str
    tempo: str
    key: str


def compose(fields: Mapping[str, Any], clip: str) -> str | None:
    """Return a description made from metadata fields, or None if they say nothing about the music.

    Args:
        fields: those of `musicgen_core.data.caption_fields`; others are ignored.
        clip: name of the clip, from which the wording is chosen.
    """
    parts = _parts(with_categories(fields))
    choice = int.from_bytes(hashlib.blake2b(clip.encode("utf-8", "replace"), digest_size=4).digest(), "big")
    wording = _WORDINGS[choice % len(_WORDINGS)]
    return ", ".join(filter(None, wording(parts))) or None


def extended(text: str, fields: Mapping[str, Any]) -> str:
    """Return a prompt with the words that descriptions have for its fields: `jazz trio, piano, 90 bpm, A minor`.

    The text takes the place of pace, mood and genre. Words that it has already are not added.
    """
    parts = _parts(fields)
    if text:
        parts = parts._replace(adjectives="", genre="")
    missing = [words for words in _OF_PROMPTS(parts) if words and not _has(text, words)]
    return ", ".join([*filter(None, [text.rstrip(" .,")]), *missing]) if missing else text


def _has(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) is not None


def without_vocals(entry: MetadataEntry) -> MetadataEntry:
    """Return the metadata of a clip whose vocals are removed: without their labels.

    A description is composed again if it is what captioning composes of these fields; one that a person wrote or
    corrected stays.
    """
    name = f"{entry.get('archive')}/{entry['path']}"
    tags = [tag for tag in texts_of(entry.get(TAGS)) if CATEGORIES.get(tag.lower()) != "vocals"]
    new = {**entry, **({TAGS: tags} if TAGS in entry else {}), "vocals": [NO_VOCALS]}
    if entry.get("description") == compose(entry, name):
        new["description"] = compose(new, name)
    return new


def _parts(fields: Mapping[str, Any]) -> _Parts:
    moods = texts_of(fields.get("mood"))[:MOST_MOODS]
    bpm = tempo_of(fields)
    pace = "" if bpm is None or _PACES & set(moods) else "slow" if bpm < SLOW_BPM else "fast" if bpm > FAST_BPM else ""
    return _Parts(
        adjectives=_words([pace, *moods]),
        genre=_words(_distinct(texts_of(fields.get("genre")))[:MOST_GENRES]),
        # tags that the vocabulary doesn't have are instruments more often than not: trumpet, vibraphone
        instruments=[*texts_of(fields.get("instruments")), *texts_of(fields.get("keywords"))][:MOST_INSTRUMENTS],
        vocals=_vocals(texts_of(fields.get("vocals"))),
        tempo="" if bpm is None else f"{bpm:.0f} bpm",
        key=field_text(fields.get("key")) or "",
    )


def _vocals(found: Sequence[str]) -> str:
    if any(each.lower() in ("none", NO_VOCALS) for each in found):
        return NO_VOCALS
    specific = [each for each in found if each != "vocals"]
    return _listed(specific or found)


def _distinct(genres: Sequence[str]) -> list[str]:
    """Leave out a genre whose words are all in another: `rock` beside `indie rock`."""
    words = [set(genre.lower().split()) for genre in genres]
    return [genre for index, genre in enumerate(genres) if not any(words[index] < other for other in words)]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def _words(parts: Iterable[str]) -> str:
    return " ".join(filter(None, parts))


def _led(parts: _Parts) -> str:
    """Return `slow ambient piano with strings and drums`."""
    if not parts.instruments:
        return _words([parts.adjectives, parts.genre, "music"]) if parts.adjectives or parts.genre else ""
    others = _listed(parts.instruments[1:])
    return _words([parts.adjectives, parts.genre, parts.instruments[0], others and f"with {others}"])


def _piece(parts: _Parts, noun: str, joint: str) -> str:
    """Return `slow ambient music with piano, strings and drums`."""
    if not (parts.adjectives or parts.genre):
        return _listed(parts.instruments)
    return _words(
        [parts.adjectives, parts.genre, noun, *([joint, _listed(parts.instruments)] * bool(parts.instruments))]
    )


def _in_key(parts: _Parts) -> str:
    return parts.key and f"in {parts.key}"


_WORDINGS: tuple[Callable[[_Parts], tuple[str, ...]], ...] = (
    lambda parts: (_led(parts), parts.vocals, parts.tempo, parts.key),
    lambda parts: (_led(parts), parts.tempo, parts.key, parts.vocals),
    lambda parts: (_piece(parts, "music", "with"), parts.vocals, parts.key, parts.tempo),
    lambda parts: (_words([_piece(parts, "track", "with"), _in_key(parts)]), parts.tempo, parts.vocals),
    lambda parts: (_piece(parts, "piece", "for"), _in_key(parts), parts.tempo, parts.vocals),
    lambda parts: (_words([parts.tempo, _led(parts)]), _in_key(parts), parts.vocals),
)
"""Wordings, in the order that people use: pace, mood and genre, instruments, then the rest"""
_OF_PROMPTS = _WORDINGS[1]
"""One for all prompts, so that prompts with equal words have equal texts"""

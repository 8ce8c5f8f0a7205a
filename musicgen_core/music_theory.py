"""Pitch classes, scales and names of keys, shared by synthesis, analysis, captions and prompts."""

from __future__ import annotations

import re
from typing import Literal

Mode = Literal["major", "minor"]

PITCH_CLASSES = 12
A4_HZ, A4_MIDI = 440.0, 69
SCALES: dict[Mode, tuple[int, ...]] = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
"""Semitones above the root; minor is the natural minor"""
TONICS: dict[Mode, tuple[str, ...]] = {
    "major": ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    "minor": ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}
"""Names of the tonics of the keys with the fewest accidentals, by pitch class"""
_LETTERS = dict(zip("CDEFGAB", SCALES["major"], strict=True))
_KEY = re.compile(r"(?P<letter>[A-G])(?P<accidental>[#♯b♭]?)[ -]*(?P<mode>major|minor)", re.IGNORECASE)


def key_name(root: int, mode: Mode) -> str:
    """Return the name of a key by its root's pitch class, such as `A minor`."""
    return f"{TONICS[mode][root % PITCH_CLASSES]} {mode}"


def key_names() -> list[str]:
    """Return the names of all keys."""
    return [key_name(root, mode) for mode in TONICS for root in range(PITCH_CLASSES)]


def parse_key(text: str) -> str | None:
    """Return the usual name of a key, such as `Db major` of `c# Major`; None if the text is no key."""
    found = _KEY.fullmatch(text.strip())
    if found is None:
        return None
    shift = {"": 0, "#": 1, "♯": 1}.get(found["accidental"], -1)
    mode: Mode = "major" if found["mode"].lower() == "major" else "minor"
    return key_name(_LETTERS[found["letter"].upper()] + shift, mode)

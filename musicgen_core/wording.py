"""Format counts, durations and sizes for sentences, in any magnitude and language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import reduce

from musicgen_core.language import as_message, message

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_NAMED = 5


def counted(number: int, noun: str) -> str:
    """Return a count with its noun: `1 archive`, `3,000 archives`."""
    nouns = as_message(f"{noun}{'' if number == 1 else 's'}", noun, {})
    return message("{number:,} {noun}", number=number, noun=nouns)


def named(names: Sequence[str], count: int = 0) -> str:
    """Return the first few names and the number of others: `a, b, c, d, e and 3 more`.

    Args:
        count: number of all names, if more than are given.
    """
    first = ", ".join(names[:_NAMED])
    more = max(count, len(names)) - len(names[:_NAMED])
    return message("{names} and {number:,} more", names=first, number=more) if more else first


def joined(texts: Iterable[str]) -> str:
    """Return texts, some of which may be messages, as one message: `a, b, c`."""
    return reduce(lambda before, text: message("{before}, {text}", before=before, text=text), texts)


def joined_sentences(texts: Iterable[str]) -> str:
    """Return sentences, some of which may be messages, as one message: `a; b; c`."""
    return reduce(lambda before, text: message("{before}; {text}", before=before, text=text), texts)


def lasting(seconds: float) -> str:
    """Return a duration in its natural unit: `12.5 seconds`, `3.0 minutes`, `1,158.3 hours`."""
    if seconds < 60:
        return message("{seconds:.1f} seconds", seconds=seconds)
    if seconds < 3600:
        return message("{minutes:,.1f} minutes", minutes=seconds / 60)
    return message("{hours:,.1f} hours", hours=seconds / 3600)


def dated(moment: datetime) -> str:
    """Return a time of this machine's zone with the zone's name: `2026-11-23 12:00 JST`."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M %Z}"


def sized(size: float) -> str:
    """Return a size with its unit, in powers of 1000: `512 bytes`, `81.7 kB`, `6.2 GB`."""
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    if power == 0:
        english = f"{size:,.0f} byte{'' if round(size) == 1 else 's'}"
        return as_message(english, message("{size:,.0f} bytes"), {"size": size})
    return message("{size:,.1f} {unit}", size=size, unit=_UNITS[power])

"""Numbers in sentences: counts, durations and sizes that read right whatever their magnitude."""

from __future__ import annotations

from collections.abc import Sequence

_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_NAMED = 5


def counted(number: int, noun: str) -> str:
    """`1 archive`, `3,000 archives`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def named(names: Sequence[str]) -> str:
    """The first few, and how many more: `a, b, c, d, e and 3 more`."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def lasting(seconds: float) -> str:
    """`12.5 seconds`, `3.0 minutes`, `1,158.3 hours`."""
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:,.1f} minutes" if seconds < 3600 else f"{seconds / 3600:,.1f} hours"


def sized(size: float) -> str:
    """`512 bytes`, `81.7 kB`, `6.2 GB`, in powers of 1000."""
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:,.1f} {_UNITS[power]}" if power else f"{size:,.0f} bytes"

"""Adapters with strengths, as users write them: `runs/first:0.7`. Imports nothing slow, for the command line's help."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from musicgen_core.errors import ConfigError
from musicgen_core.language import message

BASE = "base"
"""Stands for the base model alone where an adapter is expected"""
_STRENGTH = re.compile(
    r"(?P<source>.*):(?P<strength>[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf|infinity))",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_DIGITS = 9
"""Significant digits of the product of two strengths: what is shown and recorded is what is used"""


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter's location, and the factor of its change of the base model's weights.

    Attributes:
        source: a `*_lora.pt`, a run directory, a PEFT directory, or `USER/NAME` on the Hugging Face Hub.
        strength: 0 is the base model, 1 the adapter as it was trained; may be negative.
    """

    source: str
    strength: float = 1.0

    def __str__(self) -> str:
        """Return the text that `parse_adapter` reads as this adapter."""
        is_plain = self.strength == 1 and _STRENGTH.fullmatch(self.source) is None
        return self.source if is_plain else f"{self.source}:{shown_strength(self.strength)}"

    def times(self, factor: float) -> WeightedAdapter:
        return WeightedAdapter(self.source, float(f"{self.strength * factor:.{_DIGITS}g}"))


Mix = tuple[WeightedAdapter, ...]
"""Adapters whose changes are added up; none of them: the base model"""


def shown_strength(strength: float) -> str:
    """Return the shortest text of a strength: `0.7`, `1`."""
    return repr(int(strength)) if strength.is_integer() and abs(strength) < 1e15 else repr(strength)


def parse_adapter(text: str) -> WeightedAdapter:
    """Return the adapter of `SOURCE` or `SOURCE:STRENGTH`. A file or directory of the whole name comes first.

    Raises:
        ConfigError: the strength is not finite, or stands alone.
    """
    match = _STRENGTH.fullmatch(text)
    if match is None or _exists(text):
        return WeightedAdapter(text)
    strength = float(match["strength"])
    if not math.isfinite(strength) or not match["source"]:
        raise ConfigError(
            message("{text} is not an adapter with a strength", text=text),
            message("Give PATH:STRENGTH, such as runs/first:0.7"),
        )
    return WeightedAdapter(match["source"], strength)


def parse_adapters(given: Iterable[str]) -> Mix:
    """Return adapters in the order in which they are given; `base` gives none.

    Raises:
        ConfigError: see `parse_adapter`; or `base` is given with a strength or beside adapters.
    """
    found = tuple(parse_adapter(text) for text in given)
    if found == (WeightedAdapter(BASE),):
        return ()
    if any(one.source == BASE for one in found):
        raise ConfigError(
            message("{base} is the model without an adapter: it has no strength and stands alone", base=BASE),
            message("Give adapters, or {base} alone", base=BASE),
        )
    return found


def split_adapters(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts of adapters in a list, or in one text that separates them by commas, as in a form.

    A file or directory whose name has the comma comes first.
    """
    if not isinstance(given, str):
        return tuple(given or ())
    if "," not in given or _exists(given) or _exists(parse_adapter(given).source):
        return (given,) if given else ()
    return tuple(part.strip() for part in given.split(",") if part.strip())


def shown_adapters(adapters: Sequence[WeightedAdapter]) -> str:
    """Return the text of several adapters, in the form that `split_adapters` takes apart."""
    return ", ".join(map(str, adapters))


def times(adapters: Sequence[WeightedAdapter], factor: float) -> Mix:
    """Return the adapters with all strengths multiplied."""
    return tuple(one.times(factor) for one in adapters)


def with_effect(adapters: Iterable[WeightedAdapter]) -> Mix:
    """Return the adapters whose strength isn't 0; none of them: the base model."""
    return tuple(one for one in adapters if one.strength != 0)


def _exists(location: str) -> bool:
    from musicgen_core import storage

    try:
        return storage.as_path(location).exists()
    except (OSError, ValueError):  # a name too long, or with a null character
        return False

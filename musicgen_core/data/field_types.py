"""Fields of the metadata whose values can't be used, with what they should be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from musicgen_core.data.caption_fields import (
    DURATION,
    FASTEST_BPM,
    GROUP,
    TAGS,
    MetadataEntry,
    field_text,
    tempo_of,
    texts_of,
)
from musicgen_core.data.standing_out import SHARES, share_of
from musicgen_core.language import message
from musicgen_core.music_tags import VOCABULARY

SHOWN = 10
"""Values that are named; the others are counted"""
_SHOWN_CHARACTERS = 40


@dataclass
class WrongValues:
    """Values of the wrong type, and where they are.

    Attributes:
        count: their number.
        examples: a sentence on each of the first of them.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, line: int, entry: MetadataEntry) -> None:
        """Add those of an entry with its line's number."""
        for found in wrong_values(entry):
            self.count += 1
            if self.count <= SHOWN:
                self.examples.append(
                    message("line {line} ({clip}): {found}", line=line, clip=entry["path"], found=found)
                )

    def lines(self) -> list[str]:
        """Return the examples, and a line on those that are not among them."""
        if not (more := self.count - len(self.examples)):
            return self.examples
        return [*self.examples, message("{number:,} more values that can't be used", number=more)]


def wrong_values(entry: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each field whose value is not null and can't be used: what it is, and what it should be."""
    for name, (is_usable, expected) in _FIELDS.items():
        value = entry.get(name)
        if value is not None and value != "" and value != [] and not is_usable(value):
            text = json.dumps(value, ensure_ascii=False)
            shown = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
            yield message("{name} is {value}, and should be {expected}", name=name, value=shown, expected=expected)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    # `NaN` is pandas' null
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)


_Rule = tuple[Callable[[Any], bool], str]
_TEXT: _Rule = (_is_text, message("a text"))
_TEXTS: _Rule = (lambda value: bool(texts_of(value)), message("a list of texts"))
_NUMBER: _Rule = (_is_number, message("a number"))
_TEMPO: _Rule = (
    lambda value: _is_nan(value) or tempo_of({"bpm": value}) is not None,
    message("a number of beats per minute above 0 and below {most:,.0f}", most=FASTEST_BPM),
)
_SHARE: _Rule = (
    lambda value: _is_nan(value) or share_of({"share": value}, "share") is not None,
    message("a number from 0 to 1"),
)
_NAME: _Rule = (lambda value: not isinstance(value, bool) and field_text(value) is not None, message("a text"))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


_FIELDS: dict[str, _Rule] = {
    "description": _TEXT,
    **dict.fromkeys((TAGS, *VOCABULARY), _TEXTS),
    "tempo": _TEMPO,
    "bpm": _TEMPO,
    "tempo_steady": (lambda value: isinstance(value, bool), message("true or false")),
    "key": _NAME,
    "loudness": _NUMBER,
    **{share: _SHARE for share, _ in SHARES.values()},
    DURATION: _NUMBER,
    GROUP: _NAME,
}
"""By field, what can be used and how to describe it"""

"""Sections of a piece with texts of their own, as `START:TEXT`: `30:drums enter` from second 30 on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator
from pydantic_core import PydanticCustomError

from musicgen_core.config import check_prompt
from musicgen_core.settings import LONGEST_SECONDS

SHORTEST_SECONDS = 1
"""Shortest section: a window of generation for each of them"""
_FIELDS = {"prompt", "start", "seconds"}


class Section(NamedTuple):
    """A section of a piece.

    Attributes:
        start: its beginning in seconds.
        prompt: what it has of its own.
    """

    start: float
    prompt: str


def parse_section(text: str) -> Section:
    """Return the section of `START:TEXT`.

    Raises:
        ValueError: it has no start.
    """
    start, _, prompt = text.partition(":")
    return Section(float(start), prompt.strip())


def seconds_of(sections: Any) -> float | None:
    """Return when the last section ends, of sections as objects; None if its length isn't given, or they are wrong."""
    if not isinstance(sections, list) or not sections or not isinstance(sections[-1], Mapping):
        return None
    try:
        placed = _texts(sections)
    except PydanticCustomError:  # the field's own validation reports it
        return None
    seconds = sections[-1].get("seconds")
    return None if seconds is None else parse_section(placed[-1]).start + seconds


def _texts(given: Any) -> Any:
    """Return sections as `START:TEXT`: texts stay; an object begins at its `start`, or where the one before it ends."""
    if given is None or isinstance(given, str):
        return [given] if given else []
    if not isinstance(given, Sequence):
        return given
    found: list[str] = []
    end: float | None = 0.0
    for number, section in enumerate(given, 1):
        if not isinstance(section, Mapping):
            found.append(section)
            end = None
            continue
        if unknown := [str(name) for name in section if name not in _FIELDS]:
            raise _error(number, f"has no field {unknown[0]}, but prompt, and start or seconds")
        prompt, start, seconds = (section.get(name) for name in ("prompt", "start", "seconds"))
        if not isinstance(prompt, str):
            raise _error(number, "should have a prompt")
        for name, value in (("start", start), ("seconds", seconds)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise _error(number, f"should have a number as {name}")
        start = end if start is None else start
        if start is None:
            raise _error(number, "should have a start, or the one before it its seconds")
        if end and start != end:
            raise _error(number, f"starts at {start:g} s, and the one before it ends at {end:g} s")
        found.append(f"{start:.10g}:{prompt}")
        end = None if seconds is None else start + seconds
    return found


def _in_order(sections: tuple[str, ...]) -> tuple[str, ...]:
    before = -math.inf
    for number, text in enumerate(sections, 1):
        try:
            section = parse_section(text)
        except ValueError:
            raise _error(number, "should be its start in seconds and a text, such as 30:drums enter") from None
        if not 0 <= section.start < LONGEST_SECONDS:
            raise _error(number, f"should start between 0 and {LONGEST_SECONDS} s")
        if section.start < before + SHORTEST_SECONDS:
            raise _error(number, f"should start {SHORTEST_SECONDS} s or more after the one before it")
        check_prompt(section.prompt)
        before = section.start
    return sections


def _error(number: int, problem: str) -> PydanticCustomError:
    return PydanticCustomError("section", "section {number} {problem}", {"number": number, "problem": problem})


Sections = Annotated[tuple[str, ...], BeforeValidator(_texts), AfterValidator(_in_order)]
"""Sections as texts, or as objects with `prompt`, and `start` or `seconds`"""

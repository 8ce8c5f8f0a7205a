"""Settings of loops and of stretches that are generated again. Imports nothing slow, for the command line's help."""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from musicgen_core.codes import FRAME_RATE
from musicgen_core.settings import LONGEST_SECONDS, Settings

_RANGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*[-–]\s*(\d+(?:\.\d+)?)\s*", re.ASCII)


class Stretch(NamedTuple):
    """A stretch of a piece, in frames."""

    begin: int
    end: int


def parse_stretch(text: str) -> Stretch | None:
    """Return the stretch that a text such as `8-14` names in seconds, to the nearest frames; None if it names none."""
    found = _RANGE.fullmatch(text)
    if found is None or max(map(float, found.groups())) > LONGEST_SECONDS:
        return None
    stretch = Stretch(*(round(float(seconds) * FRAME_RATE) for seconds in found.groups()))
    return stretch if stretch.begin < stretch.end else None


def _check_stretch(text: str | None) -> str | None:
    if text and parse_stretch(text) is None:
        raise PydanticCustomError("stretch", "should be two seconds, the first one smaller, such as 8-14")
    return text or None


RedoneStretch = Annotated[str | None, AfterValidator(_check_stretch)]
"""A stretch in seconds, such as `8-14`"""


class SeamSettings(Settings):
    """New music that has to lead to music that is known."""

    model_config = ConfigDict(title="Loops and parts made again")

    loop: bool = Field(
        False, description="Make seamless loops of whole bars, near the duration: the end leads back to the beginning"
    )
    redo: RedoneStretch = Field(
        None, description="Make a part of the recording in continue_from again, in seconds: 8-14; the rest stays"
    )
    seam_candidates: int = Field(
        8,
        ge=1,
        le=64,
        description="Candidates of a loop's ending or of the part made again; the one that leads best to what follows "
        "is kept",
    )

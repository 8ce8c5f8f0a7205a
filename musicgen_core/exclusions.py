"""The setting of `tokenize` that names kinds of clips to leave out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from musicgen_core.settings import names_in

Exclusion = Literal["silent", "clipped", "speech", "vocals", "duplicate"]
"""Kinds of clips that can be left out; `musicgen_core/data/standing_out.py` has the thresholds of the measured ones"""
DUPLICATE: Literal["duplicate"] = "duplicate"
"""Near duplicates of earlier clips, which are found by the codes (`musicgen_core/data/near_duplicates.py`)"""


def measured(kinds: Sequence[Exclusion]) -> tuple[Exclusion, ...]:
    """Return those of the kinds that the fields of the metadata tell."""
    return tuple(kind for kind in kinds if kind != DUPLICATE)


Exclude = Annotated[
    tuple[Exclusion, ...],
    BeforeValidator(lambda kinds: () if kinds is None else names_in(kinds)),
    AfterValidator(lambda kinds: tuple(dict.fromkeys(kinds))),
    Field(
        description="Clips to leave out: silent, clipped, speech and vocals by what caption measured, duplicate by "
        "the codes; they are listed with the rejected ones"
    ),
]

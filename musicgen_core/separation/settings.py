"""The settings of `tokenize` that separate clips with Demucs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

RemoveVocals = Annotated[
    bool,
    Field(
        description="Remove the vocals of the clips with Demucs first: MusicGen was trained on music without singing. "
        "Needs the extra vocals, and takes many times as long"
    ),
]
SeparateMelody = Annotated[
    bool,
    Field(
        description="Take the melodies of the clips without drums and bass, which Demucs separates: as melody models "
        "were trained. Needs the extra vocals, and takes many times as long"
    ),
]


def separating_option(remove_vocals: bool, separate_melody: bool) -> str | None:
    """Return the option that needs Demucs, for errors; None if none is given."""
    return "--remove-vocals" if remove_vocals else "--separate-melody" if separate_melody else None

"""The setting of `tokenize` that removes vocals."""

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

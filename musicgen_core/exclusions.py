"""The setting of `tokenize` that names kinds of clips to leave out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

Exclusion = Literal["silent", "clipped", "speech", "vocals"]
"""Kinds of clips that can be left out; `musicgen_core/data/standing_out.py` has their thresholds"""


def _split_at_commas(kinds: Any) -> Any:
    texts = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(texts, list | tuple):
        return () if texts is None else texts
    parts = [part for text in texts for part in (text.split(",") if isinstance(text, str) else [text])]
    return [part.strip() if isinstance(part, str) else part for part in parts if part != ""]


Exclude = Annotated[
    tuple[Exclusion, ...],
    BeforeValidator(_split_at_commas),
    AfterValidator(lambda kinds: tuple(dict.fromkeys(kinds))),
    Field(
        description="Clips to leave out, by what caption measured: silent, clipped, speech, vocals; they are listed "
        "with the rejected ones"
    ),
]

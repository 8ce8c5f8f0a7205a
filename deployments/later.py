"""Commands that are promised but not there yet, so that asking for one gets an honest answer."""

from __future__ import annotations

from collections.abc import Sequence

from musicgen_core.errors import MusicgenError


def evaluate(_arguments: Sequence[str]) -> int:
    raise MusicgenError("evaluate is not there yet", "A training writes its validation loss to metrics.jsonl")


def export(_arguments: Sequence[str]) -> int:
    raise MusicgenError(
        "export is not there yet", "Stock audiocraft loads full_models/final_model.pt of a run directory"
    )

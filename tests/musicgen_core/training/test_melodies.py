"""Training a model that takes a melody: it learns with each clip's own, and tokens without them are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_core.data.shards import Row
from musicgen_core.errors import TokensError
from musicgen_core.melody import NO_CLASS
from musicgen_core.model.weights import BaseModel
from musicgen_core.training import train as training
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest, TokensOf
from tests.melody_model import make_melody_model
from tests.musicgen_core.training.conftest import random_clips


@pytest.fixture(scope="module")
def melody_model(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_melody_model(tmp_path_factory.mktemp("models") / "melody", debug_model).name


def rows(pitch_class: int) -> list[Row]:
    chroma = np.full(5, pitch_class, np.uint8)
    return [
        Row(f"{number}.wav", f"tune {number}", 1.0, codes, chroma=chroma)
        for number, codes in enumerate(random_clips(6))
    ]


def test_losses_depend_on_the_melodies_that_are_not_dropped(
    melody_model: str, tokens_of: TokensOf, request_for: MakeRequest, left_in: LeftIn, tmp_path: Path
) -> None:
    def losses(name: str, pitch_class: int, **given: Any) -> list[tuple[float, float]]:
        tokens = str(tokens_of(rows(pitch_class)))
        settings = {"cfg_dropout": 0.0, "lora_dropout": 0.0, "max_steps": 1, "full_models": "none", **given}
        train(request_for(name, model=melody_model, tokens=tokens, **settings))
        return [(row["train/loss"], row["val/loss"]) for row in left_in(str(tmp_path / name)).rows]

    [(own, validated)] = losses("own", 5, melody_dropout=0.0)
    [(none, none_validated)] = losses("none", NO_CLASS, melody_dropout=0.0)
    [(dropped, still_validated)] = losses("dropped", 5, melody_dropout=1.0)
    assert own != none == dropped
    assert validated == pytest.approx(still_validated, abs=0.02) != none_validated


def test_tokens_without_melodies_are_refused_before_the_model_is_loaded(
    melody_model: str, request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_lm", None)
    with pytest.raises(TokensError, match=r"1 shard in .* hold no melodies") as refused:
        train(request_for(model=melody_model))
    assert melody_model in refused.value.next_step

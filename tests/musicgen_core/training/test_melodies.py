"""Training a model that takes a melody: it learns with each clip's own, and tokens without them are refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgen_core import storage
from musicgen_core.data.crops import training_batch
from musicgen_core.data.dataset import load_clips
from musicgen_core.data.shards import Row
from musicgen_core.errors import TokensError
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel, find_model
from musicgen_core.training import prior_preservation
from musicgen_core.training import train as training
from musicgen_core.training.codec_check import check_tokens_codec
from musicgen_core.training.prior_preservation import PriorRequest
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


def test_losses_depend_on_melodies_unless_they_are_dropped_and_in_validation(
    melody_model: str, tokens_of: TokensOf, request_for: MakeRequest, left_in: LeftIn, tmp_path: Path
) -> None:
    tokens, found = str(tokens_of(rows(5))), []
    for dropout in (0.0, 1.0):
        settings = {"cfg_dropout": 0.0, "melody_dropout": dropout, "max_steps": 1, "full_models": "none"}
        train(request_for(f"{dropout}", model=melody_model, tokens=tokens, **settings))
        [row] = left_in(str(tmp_path / f"{dropout}")).rows
        found.append((row["train/loss"], row["val/loss"]))
    (own, validated), (dropped, still_validated) = found
    assert own != dropped and validated == pytest.approx(still_validated, abs=0.02)


def test_tokens_without_melodies_are_refused_before_pytorch_is_loaded(
    melody_model: str, tokens: Path, tokens_of: TokensOf, tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    shutil.copytree(melody_model, folder)
    check_tokens_codec(str(tokens), str(folder))
    (folder / "config.json").write_text('{"model_type": "musicgen_melody"}')  # as with Meta's models
    with pytest.raises(TokensError, match=rf"1 shard in {tokens} hold no melodies.* archive_batch_0000"):
        check_tokens_codec(str(tokens), str(folder))
    check_tokens_codec(str(tokens_of(rows(5))), str(folder))


def test_generated_clips_of_prior_preservation_have_no_melody(melody_model: str, tmp_path: Path) -> None:
    model = find_model(melody_model)
    request = PriorRequest(model.identity, codec_identity(model), ["a prompt"], count=2, seed=0, seconds=1.0)
    codes = [torch.full((4, 50), number) for number in range(2)]
    prior_preservation._publish(storage.as_path(tmp_path), request, codes, model)
    clips = load_clips(storage.as_path(tmp_path), request.codec, tmp_path / "cache", melody_model=melody_model)
    batch = training_batch(clips, [0, 1], 50, 0.0, 0, 1, chroma_frames=235)
    assert batch.chroma is not None and not batch.chroma.any()


def test_tokens_without_melodies_are_refused_before_the_model_is_loaded(
    melody_model: str, request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "load_lm", None)
    with pytest.raises(TokensError, match=r"1 shard in .* hold no melodies") as refused:
        train(request_for(model=melody_model))
    assert melody_model in refused.value.next_step

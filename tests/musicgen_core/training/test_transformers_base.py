"""Training on a base model in transformers' format, beside the same weights in audiocraft's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musicgen_core.exporting import transformers_directory
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest, MakeTokens
from tests.musicgen_core.training.conftest import random_clips


@pytest.fixture(scope="module")
def twin(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Return the debug model in transformers' format."""
    folder = tmp_path_factory.mktemp("twin")
    transformers_directory.write(folder, debug_model, debug_model.lm_state())
    return find_model(str(folder))


def test_losses_and_adapters_are_those_of_audiocrafts_format(
    debug_model: BaseModel,
    twin: BaseModel,
    make_tokens: MakeTokens,
    request_for: MakeRequest,
    left_in: LeftIn,
    tmp_path: Path,
) -> None:
    losses: list[list[float]] = []
    for name, model in (("audiocraft", debug_model), ("transformers", twin)):
        tokens = str(make_tokens(random_clips(6), codec_identity(model)))
        train(
            request_for(name, model=str(model.directory), tokens=tokens, cfg_dropout=0.3, word_dropout=0.1, max_steps=4)
        )
        losses.append([row["train/loss"] for row in left_in(str(tmp_path / name)).rows])
    assert losses[0] == losses[1] and len(losses[0]) == 4
    adapters = [
        torch.load(tmp_path / name / "lora_weights" / "final_lora.pt", weights_only=True)
        for name in ("audiocraft", "transformers")
    ]
    assert all(torch.equal(one, adapters[1]["lora"][name]) for name, one in adapters[0]["lora"].items())
    assert adapters[1]["base_model"] == twin.identity
    full = [load_lm(tmp_path / name / "full_models" / "final_model.pt") for name in ("audiocraft", "transformers")]
    assert full[0].config == full[1].config
    assert all(torch.equal(one, full[1].state_dict()[name]) for name, one in full[0].state_dict().items())


def test_a_run_on_it_resumes_bit_for_bit(
    twin: BaseModel, make_tokens: MakeTokens, request_for: MakeRequest, left_in: LeftIn, tmp_path: Path
) -> None:
    tokens = str(make_tokens(random_clips(6), codec_identity(twin)))
    for name, steps in (("whole", (4,)), ("resumed", (2, 4))):
        for step in steps:
            train(request_for(name, model=str(twin.directory), tokens=tokens, max_steps=step))
    whole, resumed = (
        [row["train/loss"] for row in left_in(str(tmp_path / name)).rows] for name in ("whole", "resumed")
    )
    assert whole == resumed

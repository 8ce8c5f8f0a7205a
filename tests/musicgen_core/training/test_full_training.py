"""Runs that train all weights: their files, their settings, and how they resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError, RunDirectoryError
from musicgen_core.model.audiocraft_format import from_audiocraft
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.trained_model import load_trained_model
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.files.checkpoint import load_checkpoint
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train
from tests.fixture_types import KillAfter, LeftIn, MakeRequest, SameWeights
from tests.musicgen_core.training.conftest import tiny_request
from tests.musicgen_core.training.trainers import EIGHT_BITS

FILES = {
    *("config.json", "metrics.jsonl", "latest.pt", "checkpoint_step_6.pt"),
    *("loss.png", "perplexity.png", "learning_rate.png"),
    *(f"full_models/{name}.pt" for name in ("best_model", "final_model", "checkpoint_epoch_2")),
}


@pytest.fixture(scope="module")
def whole(
    debug_model: BaseModel, tokens: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, TrainResult]:
    """A run of two epochs of three steps. Not to be written to."""
    run_dir = tmp_path_factory.mktemp("full") / "run"
    request = tiny_request(debug_model, tokens=str(tokens), run_dir=str(run_dir), train="all", save_every_steps=2)
    return request, train(request)


def final_of(run_dir: str, name: str = "final_model") -> dict[str, torch.Tensor]:
    return load_trained_model(storage.as_path(run_dir) / "full_models" / f"{name}.pt").weights


def test_the_run_directory_holds_full_models_and_no_adapter(
    whole: tuple[TrainRequest, TrainResult], left_in: LeftIn
) -> None:
    assert left_in(whole[0].run_dir).files == FILES
    config = json.loads((Path(whole[0].run_dir) / "config.json").read_text())
    assert config["train"] == "all" and config["learning_rate"] == 1e-3
    assert not [name for name in config if name.startswith("lora_")]


def test_every_weight_is_trained_and_the_best_model_is_the_best(
    whole: tuple[TrainRequest, TrainResult], debug_model: BaseModel
) -> None:
    request, result = whole
    base, final = load_lm(debug_model).state_dict(), final_of(request.run_dir)
    assert all(not torch.equal(final[name], base[name]) for name in base)
    best = load_trained_model(storage.as_path(request.run_dir) / "full_models" / "best_model.pt")
    assert best.epoch == result.best_epoch
    assert best.base_model.rpartition("@")[2] == debug_model.identity.rpartition("@")[2]
    assert load_checkpoint(storage.as_path(request.run_dir) / "latest.pt").progress.best_step == best.global_step


def test_a_full_model_is_a_checkpoint_of_audiocraft(
    whole: tuple[TrainRequest, TrainResult], debug_model: BaseModel, text_encoder: TextEncoder
) -> None:
    path = Path(whole[0].run_dir) / "full_models" / "final_model.pt"
    values = torch.load(path, weights_only=True)
    assert values.keys() >= torch.load(debug_model.lm_path, weights_only=True).keys()
    expected = from_audiocraft(values["best_state"])
    assert all(torch.equal(one, expected[name]) for name, one in load_lm(path).state_dict().items())


def test_killed_and_started_again_nothing_shows(
    whole: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    killed_after: KillAfter,
    left_in: LeftIn,
    same_weights: SameWeights,
) -> None:
    request, expected = request_for(train="all", save_every_steps=2), left_in(whole[0].run_dir)
    killed_after(request, 2)
    killed_after(request, 5)
    assert train(request).resumed_from == 5
    assert left_in(request.run_dir).files == FILES
    assert left_in(request.run_dir).untimed_rows == expected.untimed_rows
    for name in expected.full_models:
        same_weights(final_of(request.run_dir, name), final_of(whole[0].run_dir, name))


@pytest.mark.parametrize("given", [{"optimizer_name": "schedulefree"}, {"ema": 0.5}], ids=["schedulefree", "ema"])
def test_weights_to_evaluate_beside_those_that_learn_resume_too(
    request_for: MakeRequest, killed_after: KillAfter, left_in: LeftIn, same_weights: SameWeights, given: dict[str, Any]
) -> None:
    settings = {"train": "all", "save_every_steps": 2, "full_models": "best_and_final", "num_epochs": 1, **given}
    expected, found = request_for("expected", **settings), request_for("found", **settings)
    train(expected)
    killed_after(found, 2)
    assert train(found).resumed_from == 2
    assert left_in(found.run_dir).untimed_rows == left_in(expected.run_dir).untimed_rows
    names = left_in(expected.run_dir).full_models
    assert ("ema_model" in names) == ("ema" in given)
    for name in names:
        same_weights(final_of(found.run_dir, name), final_of(expected.run_dir, name))


@pytest.mark.parametrize("optimizer", ["prodigy", EIGHT_BITS])
def test_other_optimizers_learn_and_resume(request_for: MakeRequest, same_weights: SameWeights, optimizer: str) -> None:
    rate = 1.0 if optimizer == "prodigy" else 1e-3
    given = {"train": "all", "optimizer_name": optimizer, "learning_rate": rate, "num_epochs": 1}
    expected, found = request_for("expected", **given), request_for("found", **given)
    train(expected)
    train(dataclasses.replace(found, settings=found.settings.model_copy(update={"max_steps": 2})))
    assert train(found).resumed_from == 2
    same_weights(final_of(found.run_dir), final_of(expected.run_dir))


def test_going_back_sets_later_models_aside_and_ends_the_same(
    whole: tuple[TrainRequest, TrainResult], request_for: MakeRequest, left_in: LeftIn, same_weights: SameWeights
) -> None:
    request = request_for(train="all", save_every_steps=2, keep_last=9)
    train(request)
    again = train(dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_2.pt"))
    assert again.resumed_from == 2
    aside = {name for name in left_in(request.run_dir).files if name.startswith("superseded/1/full_models/")}
    assert {Path(name).stem for name in aside} >= {"final_model", "best_model", "checkpoint_epoch_1"}
    same_weights(final_of(request.run_dir), final_of(whole[0].run_dir))


def test_a_finished_run_is_complete_and_a_lost_final_model_is_written_again(
    request_for: MakeRequest, left_in: LeftIn
) -> None:
    request = request_for(train="all", max_steps=1)
    train(request)
    before = left_in(request.run_dir).contents
    assert train(request).ending == "complete before"
    final = Path(request.run_dir) / "full_models" / "final_model.pt"
    final.unlink()
    train(request)
    assert final.read_bytes() == before["full_models/final_model.pt"][1]


def test_the_copy_has_the_models_and_can_be_continued(request_for: MakeRequest, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    train(request_for(train="all", max_steps=1, copy_to=str(copy)))
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*.pt")}
    assert found == {"latest.pt", "full_models/best_model.pt", "full_models/final_model.pt"}
    assert train(request_for(train="all", max_steps=2, run_dir=str(copy))).resumed_from == 1


def test_a_run_of_an_adapter_is_not_resumed_with_all_weights(request_for: MakeRequest) -> None:
    train(request_for(max_steps=1))
    with pytest.raises(RunDirectoryError, match="train is lora there and all here"):
        train(request_for(train="all", max_steps=1))


def test_samples_are_rendered_from_the_trained_weights(request_for: MakeRequest, left_in: LeftIn) -> None:
    given = {"sample_prompts": ["bells"], "sample_seconds": 0.2, "max_steps": 1, "learning_rate": 0.1}
    request = request_for(train="all", **given)
    train(request)
    samples = [(Path(request.run_dir) / "samples" / f"epoch_00{epoch}_00.wav").read_bytes() for epoch in (0, 1)]
    assert samples[0] != samples[1]


def test_training_can_start_from_an_adapter(request_for: MakeRequest, left_in: LeftIn, debug_model: BaseModel) -> None:
    adapter = request_for("adapter", max_steps=2, learning_rate=0.1)
    train(adapter)
    request = request_for(train="all", init_adapter=adapter.run_dir, learning_rate=1e-12, weight_decay=0, max_steps=1)
    train(request)
    merged = from_audiocraft(left_in(adapter.run_dir).full_model("best_model"))
    for name, tensor in final_of(request.run_dir).items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lora_r": 16, "lora_alpha": 8.0}, "lora_r, lora_alpha"),
        ({"layers": "0"}, "layers"),
        ({"base_precision": "fp8"}, "base_precision fp8"),
        ({"full_models": "none"}, "full_models none"),
        ({"optimizer_name": "prodigy", "gpus": 2}, "optimizer_name prodigy"),
    ],
)
def test_settings_that_need_an_adapter_are_refused_by_name(
    request_for: MakeRequest, given: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        train(request_for(train="all", **given))


def test_the_learning_rate_depends_on_what_is_trained_unless_given() -> None:
    rates = [
        TrainSettings(**given).learning_rate
        for given in ({}, {"train": "all"}, {"train": "all", "learning_rate": 3e-5})
    ]
    assert rates == [1e-4, 1e-5, 3e-5]

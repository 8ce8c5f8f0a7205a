"""Optimizers of other packages: they learn, their states are complete, and what they evaluate is what is saved."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from musicgen_core import learning_settings, storage
from musicgen_core.errors import ConfigError
from musicgen_core.model.trained_model import tensors_of
from musicgen_core.training import train as training
from musicgen_core.training.files.checkpoint import load_checkpoint
from musicgen_core.training.loop import Trainer
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest
from tests.musicgen_core.training.trainers import EIGHT_BITS, MakeTrainer, losses_of, run

RATES = {"adamw": 1e-2, "prodigy": 1.0, "schedulefree": 1e-2, "adamw8bit": 1e-2}
STATES = {
    "adamw": {"step", "exp_avg", "exp_avg_sq"},
    "prodigy": {"s", "p0", "exp_avg", "exp_avg_sq"},
    "schedulefree": {"y", "z", "exp_avg_sq"},
    "adamw8bit": set(),
}
OTHERS = [name for name in RATES if name != "adamw"]
INSTALLED = ["adamw", "prodigy", "schedulefree", EIGHT_BITS]


@pytest.mark.parametrize("optimizer", INSTALLED)
def test_every_optimizer_learns_the_training_clips(trainer_of: MakeTrainer, optimizer: str) -> None:
    trainer = trainer_of(optimizer_name=optimizer, learning_rate=RATES[optimizer], num_epochs=12, lora_dropout=0.0)
    losses = [row["train/loss"] for row in run(trainer)]
    assert min(losses[-2:]) < losses[0] - 0.02


@pytest.mark.parametrize("optimizer", INSTALLED)
def test_a_checkpoint_holds_the_state_by_parameter(request_for: MakeRequest, optimizer: str) -> None:
    request = request_for(optimizer_name=optimizer, max_steps=2, full_models="none")
    train(request)
    checkpoint = load_checkpoint(storage.as_path(request.run_dir) / "latest.pt")
    saved, tensors = checkpoint.optimizer, tensors_of(checkpoint.learned)
    assert saved.keys() == {"state", "param_groups"} | (set() if optimizer == "adamw" else {"of_all"})
    for of_one in saved["state"].values():
        assert of_one.keys() == STATES[optimizer]
    if STATES[optimizer]:
        shapes = sorted(list(of_one["exp_avg_sq"].shape) for of_one in saved["state"].values())
        assert shapes == sorted(list(tensor.shape) for tensor in tensors.values())
    if optimizer == "adamw8bit":
        (packed,) = (value for value in saved["of_all"].values() if isinstance(value, dict))
        assert packed["state1"].dtype == packed["state2"].dtype == torch.uint8
        assert packed["state1"].numel() == sum(tensor.numel() for tensor in tensors.values())


def test_prodigy_resumes_with_the_step_size_that_it_has_found(trainer_of: MakeTrainer) -> None:
    first = trainer_of(optimizer_name="prodigy", learning_rate=1.0, num_epochs=2)
    run(first)
    (group,) = first.learner.optimizer_state()["param_groups"]
    assert group["d"] > group["d0"] and group["k"] == first.progress.step
    resumed = trainer_of(optimizer_name="prodigy", learning_rate=0.5, num_epochs=2)
    resumed.restore(first.learner.weights(), first.learner.optimizer_state(), first.progress)
    (group_then,) = resumed.learner.optimizer_state()["param_groups"]
    assert {**group_then, "lr": 0} == {**group, "lr": 0}


def test_the_weights_that_schedulefree_evaluates_are_those_saved(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(optimizer_name="schedulefree", learning_rate=1e-2, num_epochs=3)
    validated = [row["val/loss"] for row in run(trainer) if "val/loss" in row]
    saved, trained = trainer.learner.weights(), trainer.learner.optimizer_state()["state"]
    assert any(not torch.equal(trained[i]["y"], tensor) for i, tensor in enumerate(saved.values()))
    plain: Trainer = trainer_of()
    plain.restore(saved, plain.learner.optimizer_state(), plain.progress)
    assert plain.validate()["val/loss"] == pytest.approx(validated[-1], rel=1e-6)


def test_evaluating_leaves_the_weights_of_schedulefree_as_they_are(trainer_of: MakeTrainer) -> None:
    often, rarely = (
        trainer_of(optimizer_name="schedulefree", learning_rate=1e-2, num_epochs=2, validate_every_steps=every)
        for every in (1, None)
    )
    rows = [run(trainer) for trainer in (often, rarely)]
    assert [row["train/loss"] for row in rows[0]] == [row["train/loss"] for row in rows[1]]
    assert len(losses_of(rows[0])) > len(losses_of(rows[1]))


@pytest.mark.parametrize("optimizer", OTHERS)
def test_a_missing_package_is_named_before_anything_is_loaded(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    def load(*_: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr(training, "find_model", load)
    monkeypatch.setattr(learning_settings, "find_spec", lambda name: None)
    request = request_for(optimizer_name=optimizer)
    with pytest.raises(ConfigError, match=f"optimizer_name {optimizer} needs the package") as refused:
        train(request)
    assert "uv sync --extra optimizers" in refused.value.next_step
    default = dataclasses.replace(request, settings=request.settings.model_copy(update={"optimizer_name": "adamw"}))
    with pytest.raises(AssertionError, match="loaded"):
        train(default)


@pytest.mark.parametrize(("rate", "warns"), [(1e-4, True), (1.0, False)])
def test_a_learning_rate_of_adamw_is_reported_for_prodigy(
    trainer_of: MakeTrainer,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    rate: float,
    warns: bool,
) -> None:
    trainer_of(optimizer_name="prodigy", learning_rate=rate)
    assert ("1 is usual" in caplog.text) == warns
    assert "weight decay" not in capsys.readouterr().out  # which the package prints


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", INSTALLED)
def test_a_run_on_a_gpu_resumes_to_the_same_bits(request_for: MakeRequest, optimizer: str) -> None:
    settings = {
        "optimizer_name": optimizer,
        "learning_rate": RATES[optimizer],
        "full_models": "none",
        "sample_prompts": [],
    }
    whole = request_for("whole", **settings, device="cuda")
    parts = request_for("parts", **settings, device="cuda")
    train(whole)
    train(dataclasses.replace(parts, settings=parts.settings.model_copy(update={"max_steps": 3})))
    assert train(parts).resumed_from == 3
    first, second = (
        tensors_of(load_checkpoint(storage.as_path(one.run_dir) / "latest.pt").learned) for one in (whole, parts)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)

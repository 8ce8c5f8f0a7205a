"""The moving average of an adapter: its value, its files, its validation, and resuming with and without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.training.files.checkpoint import load_checkpoint
from musicgen_core.training.hooks import Hooks
from musicgen_core.training.loop import Trainer
from musicgen_core.training.optimization import average_decay
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest
from tests.musicgen_core.training.trainers import MakeTrainer


def with_ema(request: TrainRequest, ema: float | None) -> TrainRequest:
    return dataclasses.replace(request, settings=request.settings.model_copy(update={"ema": ema}))


def test_the_average_follows_the_weights_after_each_step(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ema=0.2, num_epochs=2)
    found, expected = trainer.learner.average(), trainer.learner.weights()
    assert found is not None and all(torch.equal(found[name], expected[name]) for name in expected)
    averages: list[dict[str, Tensor]] = [expected]

    def follow(row: dict[str, float]) -> None:
        decay, weights = average_decay(0.2, int(row["step"])), trainer.learner.weights()
        averages.append({name: decay * averages[-1][name] + (1 - decay) * weights[name] for name in weights})

    trainer.run(Hooks(on_step=follow))
    found = trainer.learner.average()
    assert found is not None and len(averages) > 3
    for name, tensor in averages[-1].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)


def test_the_decay_rises_to_the_one_given() -> None:
    decays = [average_decay(0.999, step) for step in (1, 2, 90, 8990, 10**6)]
    assert decays == pytest.approx([2 / 11, 3 / 12, 0.91, 8991 / 9000, 0.999])


def test_validating_the_average_leaves_the_weights_as_they_are(trainer_of: MakeTrainer) -> None:
    plain, averaged = trainer_of(num_epochs=2), trainer_of(num_epochs=2, ema=0.5)
    rows: dict[Trainer, list[dict[str, float]]] = {plain: [], averaged: []}
    for trainer, own in rows.items():
        trainer.run(Hooks(on_step=own.append))
    without, with_average = plain.learner.weights(), averaged.learner.weights()
    assert all(torch.equal(without[name], with_average[name]) for name in without)
    assert [row["train/loss"] for row in rows[plain]] == [row["train/loss"] for row in rows[averaged]]
    validated = [row for row in rows[averaged] if "val/loss" in row]
    assert validated and all(row["val/loss_ema"] != row["val/loss"] for row in validated)
    assert not any("ema" in name for row in rows[plain] for name in row)


@pytest.mark.parametrize("is_better", [True, False])
def test_the_best_adapter_is_the_better_of_both(
    request_for: MakeRequest, left_in: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, is_better: bool
) -> None:
    calls: list[int] = []

    def loss(self: Trainer, cancelled: Any = None) -> dict[str, float]:
        calls.append(0)
        return {"val/loss": 1.0 if (len(calls) % 2 == 0) == is_better else 2.0}  # the weights first, then the average

    monkeypatch.setattr(Trainer, "validate", loss)
    request = request_for(ema=0.9, num_epochs=1)
    assert train(request).best_loss == 1.0
    left = left_in(request.run_dir)
    best, source = left.adapter("best_lora"), left.adapter("ema_lora" if is_better else "final_lora")
    other = left.adapter("final_lora" if is_better else "ema_lora")
    assert all(torch.equal(best[name], source[name]) for name in best)
    assert not all(torch.equal(best[name], other[name]) for name in best)
    assert left.rows[-1]["best/is_ema"] == is_better
    models = [left.full_model(name) for name in ("best_model", "final_model")]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0]) == (not is_better)


def test_an_average_can_be_added_to_a_run_and_left_out_again(
    request_for: MakeRequest, killed_after: Callable[[TrainRequest, int], None], left_in: Callable[[str], Any]
) -> None:
    request = request_for(save_every_steps=1, full_models="none")
    latest = storage.as_path(request.run_dir) / "latest.pt"
    killed_after(request, 2)
    assert "average" not in torch.load(str(latest), weights_only=True)
    killed_after(with_ema(request, 0.9), 4)
    assert load_checkpoint(latest).average is not None
    train(request)
    assert load_checkpoint(latest).average is None
    assert {"ema_lora", "final_lora"} <= {name.split("/")[-1].split(".")[0] for name in left_in(request.run_dir).files}

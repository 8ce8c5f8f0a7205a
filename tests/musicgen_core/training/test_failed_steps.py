"""Steps that fail: losses and gradients that are not finite, loss scaling, no gradient at all."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.errors import TrainingError
from musicgen_core.training import loop
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.loop import Trainer
from tests.musicgen_core.training.trainers import ONE, MakeTrainer, losses_of, run


def spoil(trainer: Trainer, *steps: int) -> None:
    """Let these steps' losses be NaN."""
    whole = trainer.gradients.compute

    def compute(*arguments: Any) -> Tensor:
        loss = whole(*arguments)
        return loss * math.nan if trainer.progress.step + 1 in steps else loss

    trainer.gradients.compute = compute  # type: ignore[assignment, method-assign]


def test_a_loss_that_is_not_finite_skips_its_step_and_is_counted(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, num_epochs=2)
    spoil(trainer, 2, 5)
    rows = run(trainer)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert [row["train/skipped_steps"] for row in rows] == [0, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert [row["step"] for row in rows if "train/loss" not in row] == [2, 5]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    taken = [row["train/loss"] for row in rows[:5] if "train/loss" in row]
    assert rows[4]["train/epoch_loss"] == pytest.approx(sum(taken) / 3)


def test_a_skipped_step_leaves_the_adapter_as_it_was(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(max_steps=1)
    spoil(trainer, 1)
    before = trainer.learner.weights()
    run(trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.learner.weights().items())


def test_ten_skipped_in_a_row_end_the_run_with_advice(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, num_epochs=4)
    spoil(trainer, 3, *range(5, 20))
    with pytest.raises(TrainingError, match=r"step 14 gave a loss of nan .* the 10th in a row") as ended:
        run(trainer)
    assert "--learning-rate" in ended.value.next_step and "--resume" in ended.value.next_step


def test_fp16_overflow_repeats_the_step_at_half_the_loss_scale(
    trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOSS_SCALE_STEPS", 2)
    expected, trainer = trainer_of(ONE), trainer_of(ONE, Execution("fp16", False, False))
    whole = trainer.gradients.compute
    scales: list[float] = []

    def compute(batch: Any, seed: int, epoch: int, clips: int, scale: float) -> Tensor:
        scales.append(scale)
        loss = whole(batch, seed, epoch, clips, scale)
        if scale > 2.0**13:
            trainer.computation.trained.gradient.fill_(math.inf)
        return loss

    trainer.gradients.compute = compute  # type: ignore[assignment, method-assign]
    rows = run(trainer)
    assert scales == [2.0**power for power in (15, 14, 13, 13, 14, 13, 13, 14, 13)]  # tried higher after steps 2 and 4
    assert rows[-1]["train/skipped_steps"] == 0
    assert losses_of(rows) == pytest.approx(losses_of(run(expected)), rel=1e-4)
    assert trainer.progress.loss_scale == 2.0**13


def test_gradients_that_always_overflow_keep_the_loss_scale(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, Execution("fp16", False, False))
    whole, before = trainer.gradients.compute, trainer.progress.loss_scale

    def compute(*arguments: Any) -> Tensor:
        loss = whole(*arguments)
        if trainer.progress.step == 1:
            trainer.computation.trained.gradient.fill_(math.inf)
        return loss

    trainer.gradients.compute = compute  # type: ignore[assignment, method-assign]
    rows = run(trainer)
    assert rows[-1]["train/skipped_steps"] == 1 and trainer.progress.loss_scale == before


def test_the_loss_scale_resumes(trainer_of: MakeTrainer) -> None:
    fp16 = Execution("fp16", compile=False, checkpointing=False)
    first, second, in_fp32 = trainer_of(execution=fp16), trainer_of(execution=fp16), trainer_of()
    first.progress.loss_scale = 256.0
    saved = first.learner.weights(), first.learner.optimizer_state(), first.progress
    second.restore(*saved)
    in_fp32.restore(*saved)
    assert (second.progress.loss_scale, in_fp32.progress.loss_scale) == (256.0, None)


def test_an_adapter_that_no_gradient_reaches_is_an_error(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of()
    whole = trainer.computation.step

    def dead(*arguments: Any) -> Tensor:
        losses = whole(*arguments)
        trainer.computation.trained.gradient.zero_()
        return losses

    trainer.computation.step = dead  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainingError, match="all gradients of the first step are zero"):
        run(trainer)

"""Validation: the best step, early stopping, losses of codebooks, interruptions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from torch import Tensor

from musicgen_core.errors import Cancelled
from musicgen_core.training.hooks import Hooks
from musicgen_core.training.loop import Trainer
from tests.musicgen_core.training.trainers import ONE, MakeTrainer, Row, run


def scripted(trainer: Trainer, losses: list[float]) -> None:
    """Let validations come out so, one after the other."""
    coming = iter(losses)
    trainer.validate = lambda cancelled=None: {"val/loss": next(coming)}  # type: ignore[method-assign]


def calls_of(trainer: Trainer) -> tuple[list[Row], list[Any]]:
    rows: list[Row] = []
    calls: list[Any] = []
    trainer.run(
        Hooks(
            on_step=lambda row: rows.append(dict(row)),
            on_epoch=lambda epoch, is_best: calls.append(("epoch", trainer.progress.step, is_best)),
            on_interval=lambda due: None,
            cancelled=lambda: False,
            on_best=lambda: calls.append(("best", trainer.progress.step)),
        )
    )
    return rows, calls


def test_validation_within_epochs_can_find_the_best(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, num_epochs=2, validate_every_steps=2)  # 5 steps an epoch
    scripted(trainer, [5.0, 4.0, 4.5, 3.0, 3.5, 3.2])
    rows, calls = calls_of(trainer)
    assert {row["step"]: row["val/loss"] for row in rows if "val/loss" in row} == {
        2: 5.0, 4: 4.0, 5: 4.5, 6: 3.0, 8: 3.5, 10: 3.2,
    }  # fmt: skip
    assert calls == [("best", 2), ("best", 4), ("epoch", 5, False), ("best", 6), ("epoch", 10, False)]
    progress = trainer.progress
    assert (progress.best_loss, progress.best_epoch, progress.best_step) == (3.0, 2, 6)


def test_an_interrupted_best_validation_is_the_best_when_repeated(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, validate_every_steps=2, early_stopping=1, max_steps=3)
    scripted(trainer, [5.0, 5.0, 4.0])
    with pytest.raises(ZeroDivisionError):
        trainer.run(
            Hooks(lambda row: None, lambda epoch, best: None, lambda due: None, lambda: False, on_best=lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        )
    trainer.progress.best_loss, trainer.progress.best_step = 5.0, 2  # as on_best had saved them
    _, calls = calls_of(trainer)
    assert calls == [("best", 2), ("epoch", 3, True)]


def test_it_stops_early_when_validations_bring_nothing_new(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, num_epochs=9, early_stopping=2)
    scripted(trainer, [5.0, 4.0, 4.5, 4.1])
    rows, calls = calls_of(trainer)
    assert calls == [("epoch", 5, True), ("epoch", 10, True), ("epoch", 15, False), ("epoch", 20, False)]
    assert rows[-1]["step"] == 20 and trainer.is_done
    assert trainer.progress.step < trainer.order.total_steps
    assert calls_of(trainer) == ([], [])  # started again, it is done


def test_without_validation_clips_early_stopping_counts_epochs(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, num_epochs=2, validation_fraction=0.0, validate_every_steps=1, early_stopping=2)
    rows, calls = calls_of(trainer)
    assert rows[-1]["step"] == trainer.order.total_steps
    assert [call[0] for call in calls] == ["epoch", "epoch"]


def test_without_early_stopping_it_trains_to_the_end(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of(ONE, num_epochs=4)
    scripted(trainer, [5.0, math.nan, 7.0, 8.0])
    calls_of(trainer)
    assert (trainer.progress.step, trainer.progress.best_epoch, trainer.is_done) == (20, 1, True)


def test_validation_tells_the_loss_of_each_codebook(trainer_of: MakeTrainer) -> None:
    found = trainer_of().validate()
    losses = [found[f"val/loss_codebook_{k}"] for k in range(4)]
    assert found["val/loss"] == pytest.approx(sum(losses) / 4)
    assert [found[f"val/perplexity_codebook_{k}"] for k in range(4)] == pytest.approx([math.exp(x) for x in losses])


def test_cancelled_while_validating_it_saves_and_validates_later(
    trainer_of: MakeTrainer,
) -> None:
    trainer, expected = trainer_of(ONE), run(trainer_of(ONE))
    saves: list[int] = []
    whole = trainer.gradients.validation_losses

    def slow(batch: Any) -> Tensor:
        raise AssertionError("not reached: it was asked to stop before")

    trainer.gradients.validation_losses = slow  # type: ignore[method-assign]
    hooks = Hooks(
        on_step=lambda row: None,
        on_epoch=lambda epoch, is_best: None,
        on_interval=lambda due: None,
        cancelled=lambda: trainer.progress.step == 5,
        on_interruption=lambda: saves.append(trainer.progress.step),
    )
    with pytest.raises(Cancelled, match="while it validated after step 5"):
        trainer.run(hooks)
    assert saves == [5] and trainer.progress.pending is not None
    trainer.gradients.validation_losses = whole  # type: ignore[method-assign]
    assert run(trainer)[-1]["val/loss"] == expected[-1]["val/loss"]

"""Out of memory: smaller batches, then checkpointing, with the same losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.errors import DeviceError
from musicgen_core.training.compute.execution import Execution
from tests.musicgen_core.training.trainers import MakeTrainer, fits, losses_of, run


def test_out_of_memory_halves_the_micro_batch_and_goes_on_from_the_same_step(trainer_of: MakeTrainer) -> None:
    expected, short = trainer_of(), trainer_of()
    asked = fits(short, most=1)
    assert losses_of(run(short)) == pytest.approx(losses_of(run(expected)), rel=2e-5)
    assert asked == [4, 2, 1, 1, 1, 1, 1]  # 5 training clips, and what was found out in step 1 holds in step 2
    assert not short.computation.execution.checkpointing


def test_one_clip_too_large_turns_on_checkpointing(trainer_of: MakeTrainer) -> None:
    expected, short = trainer_of(), trainer_of()
    asked = fits(short, most=0)
    assert losses_of(run(short)) == pytest.approx(losses_of(run(expected)), rel=2e-5)
    assert short.computation.execution.checkpointing
    assert asked[:4] == [4, 2, 1, 1]


def test_where_nothing_fits_it_ends_with_advice(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of()

    def never(*arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    trainer.computation.step = never  # type: ignore[assignment, method-assign]
    with pytest.raises(DeviceError, match="doesn't fit the memory") as refused:
        run(trainer)
    assert "--segment-seconds" in refused.value.next_step


def test_computing_activations_twice_changes_nothing(trainer_of: MakeTrainer) -> None:
    kept, twice = trainer_of(), trainer_of(execution=Execution("fp32", compile=False, checkpointing=True))
    assert [row["train/loss"] for row in run(kept)] == [row["train/loss"] for row in run(twice)]
    assert all(torch.equal(a, twice.learner.weights()[name]) for name, a in kept.learner.weights().items())


def test_out_of_memory_in_validation_takes_less(trainer_of: MakeTrainer) -> None:
    expected, short = trainer_of().validate(), trainer_of()
    whole, asked = short.computation.losses, []

    def losses(codes: Tensor, *arguments: Any) -> Tensor:
        asked.append(len(codes))
        if len(asked) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(codes, *arguments)

    short.computation.losses = losses  # type: ignore[method-assign, assignment]
    assert short.validate()["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-6)
    assert short.gradients.micro == 2

"""Failures in a step and their handling: out of memory, non-finite numbers, several ranks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips
from musicgen_core.errors import Cancelled, DeviceError, TrainingError
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training import loop
from musicgen_core.training.batch_size import BatchSize
from musicgen_core.training.compute.model import Execution
from musicgen_core.training.loop import Hooks, Trainer, learning_rate
from musicgen_core.training.processes.distributed import World

Row = dict[str, float]
MakeTrainer = Callable[..., Trainer]
FP32 = Execution("fp32", compile=False, checkpointing=False)
FOUR, ONE = BatchSize(4, 1), BatchSize(1, 1)


@pytest.fixture
def trainer_of(debug_model: BaseModel, text_encoder: TextEncoder, clips: Clips) -> MakeTrainer:
    def make(size: BatchSize = FOUR, execution: Execution = FP32, world: World | None = None, **given: Any) -> Trainer:
        settings = TrainSettings(**{"num_epochs": 1, "learning_rate": 1e-3, **given})
        return Trainer(load_lm(debug_model), text_encoder, clips, settings, size, 0.3, execution, world)

    return make


def run(trainer: Trainer) -> list[Row]:
    rows: list[Row] = []
    trainer.run(Hooks(lambda row: rows.append(dict(row)), lambda epoch, best: None, lambda due: None, lambda: False))
    return rows


def fits(trainer: Trainer, most: int) -> list[int]:
    """Let the model run out of memory in a backward pass over more than `most` clips → the batches that it was given.

    A step that fails halfway has left gradients behind.
    """
    asked: list[int] = []
    whole = trainer.computation.step

    def step(codes: Tensor, *arguments: Any) -> Tensor:
        asked.append(len(codes))
        losses = whole(codes, *arguments)
        if len(codes) > most and not trainer.computation.execution.checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses

    trainer.computation.step = step  # type: ignore[assignment, method-assign]
    return asked


def losses_of(rows: list[Row]) -> list[float]:
    """Those after the first step tell whether the update before was the same."""
    return [row[name] for row in rows for name in ("train/loss", "val/loss") if name in row]


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
    assert all(torch.equal(a, twice.adapter_tensors()[name]) for name, a in kept.adapter_tensors().items())


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
    before = trainer.adapter_tensors()
    run(trainer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.adapter_tensors().items())


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
            trainer.computation.flat.gradient.fill_(math.inf)
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
            trainer.computation.flat.gradient.fill_(math.inf)
        return loss

    trainer.gradients.compute = compute  # type: ignore[assignment, method-assign]
    rows = run(trainer)
    assert rows[-1]["train/skipped_steps"] == 1 and trainer.progress.loss_scale == before


def test_the_loss_scale_resumes(trainer_of: MakeTrainer) -> None:
    fp16 = Execution("fp16", compile=False, checkpointing=False)
    first, second, in_fp32 = trainer_of(execution=fp16), trainer_of(execution=fp16), trainer_of()
    first.progress.loss_scale = 256.0
    saved = first.adapter_tensors(), first.optimizer_state(), first.progress
    second.restore(*saved)
    in_fp32.restore(*saved)
    assert (second.progress.loss_scale, in_fp32.progress.loss_scale) == (256.0, None)


class Threads:
    """Ranks as threads of this process, which meet where processes would."""

    def __init__(self, size: int) -> None:
        self.size, self.boxes = size, [None] * size
        self.meeting = threading.Barrier(size, timeout=120)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self.boxes[rank] = value
        self.meeting.wait()
        found = list(self.boxes)
        self.meeting.wait()
        return found


class ThreadWorld(World):
    threads: Threads

    @classmethod
    def of(cls, rank: int, threads: Threads) -> ThreadWorld:
        world = cls(rank, threads.size, torch.device("cpu"))
        object.__setattr__(world, "threads", threads)
        return world

    def all_reduce(self, tensor: Tensor) -> None:
        tensor.copy_(self.sum(tensor))

    def sum(self, tensor: Tensor) -> Tensor:
        return torch.stack(self.threads.exchange(self.rank, tensor.clone())).sum(0)

    def highest(self, value: int) -> int:
        return max(self.threads.exchange(self.rank, value))


def run_on(size: int, make: Callable[[int, World], Trainer]) -> list[list[Row]]:
    """Train on that many ranks → the rows of each."""
    threads = Threads(size)
    trainers = [make(rank, ThreadWorld.of(rank, threads)) for rank in range(size)]
    rows: list[list[Row]] = [[] for _ in trainers]

    def work(rank: int) -> None:
        rows[rank] = run(trainers[rank])

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return rows


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_number_of_ranks_does_not_change_the_curve(trainer_of: MakeTrainer, ranks: int) -> None:
    """With dropout, and with an epoch's last step of fewer clips than ranks (5 clips: 4 + 1)."""
    alone = run(trainer_of(FOUR, num_epochs=2))
    together = run_on(ranks, lambda rank, world: trainer_of(FOUR, FP32, world, num_epochs=2))
    for rows in together:
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        for name in ("train/loss", "train/grad_norm", "val/loss"):
            found = [row[name] for row in rows if name in row]
            np.testing.assert_allclose(found, [row[name] for row in alone if name in row], rtol=2e-5)


def test_when_one_rank_runs_out_of_memory_all_reduce_their_batch(trainer_of: MakeTrainer) -> None:
    alone = run(trainer_of())
    asked: dict[int, list[int]] = {}

    def make(rank: int, world: World) -> Trainer:
        trainer = trainer_of(BatchSize(2, 1, gpus=2), FP32, world)
        asked[rank] = fits(trainer, most=1 if rank else 4)
        return trainer

    for rows in run_on(2, make):
        assert losses_of(rows) == pytest.approx(losses_of(alone), rel=2e-5)
    assert asked[0][:3] == [2, 1, 1] and asked[1][:3] == [2, 1, 1]


def test_latest_is_saved_every_few_minutes(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 10.0
        return now

    monkeypatch.setattr("musicgen_core.training.loop.time", SimpleNamespace(monotonic=tick))
    saves: list[bool] = []
    trainer = trainer_of(ONE, save_every_minutes=1.0)
    trainer.run(Hooks(lambda row: None, lambda epoch, best: None, saves.append, lambda: False))
    assert saves and not any(saves)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_schedule_follows_the_warm_up(schedule: Any, expected: list[float]) -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_steps=2, schedule=schedule)
    assert [learning_rate(settings, step, 6) for step in range(1, 7)] == pytest.approx(expected)


# Validation


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
        raise AssertionError("not reached: it was told to stop before")

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


def test_an_adapter_that_no_gradient_reaches_is_an_error(trainer_of: MakeTrainer) -> None:
    trainer = trainer_of()
    whole = trainer.computation.step

    def dead(*arguments: Any) -> Tensor:
        losses = whole(*arguments)
        trainer.computation.flat.gradient.zero_()
        return losses

    trainer.computation.step = dead  # type: ignore[method-assign, assignment]
    with pytest.raises(TrainingError, match="no gradient reaches the adapter"):
        run(trainer)

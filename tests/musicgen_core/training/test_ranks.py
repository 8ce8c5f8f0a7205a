"""Several ranks, as threads of this process, train like one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musicgen_core.training.batches import BatchSize
from musicgen_core.training.loop import Trainer
from musicgen_core.training.processes.distributed import World
from tests.musicgen_core.training.trainers import EIGHT_BITS, FOUR, FP32, MakeTrainer, Row, fits, losses_of, run


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
    return run_all([make(rank, ThreadWorld.of(rank, threads)) for rank in range(size)])


def run_all(trainers: list[Trainer]) -> list[list[Row]]:
    rows: list[list[Row]] = [[] for _ in trainers]

    def work(rank: int) -> None:
        rows[rank] = run(trainers[rank])

    running = [threading.Thread(target=work, args=(rank,)) for rank in range(len(trainers))]
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


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy", "schedulefree", EIGHT_BITS])
def test_all_ranks_keep_the_same_weights_and_average(trainer_of: MakeTrainer, optimizer: str) -> None:
    given = {"optimizer_name": optimizer, "ema": None if optimizer == "schedulefree" else 0.9, "learning_rate": 0.1}
    threads = Threads(2)
    pair = [trainer_of(BatchSize(2, 1, gpus=2), FP32, ThreadWorld.of(rank, threads), **given) for rank in range(2)]
    run_all(pair)
    for own, others in ((trainer.learner.weights(), trainer.learner.average() or {}) for trainer in pair[1:]):
        first, average = pair[0].learner.weights(), pair[0].learner.average() or {}
        assert all(torch.equal(own[name], first[name]) for name in first)
        assert all(torch.equal(others[name], average[name]) for name in average)


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

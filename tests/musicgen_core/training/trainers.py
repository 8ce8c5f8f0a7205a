"""Trainers of the debug model: running them, letting them run out of memory, reading their losses."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.training.batches import BatchSize
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.hooks import Hooks
from musicgen_core.training.loop import Trainer

EIGHT_BITS = pytest.param(
    "adamw8bit", marks=pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra `optimizers`")
)
"""The optimizer whose package isn't part of the environment for development: peft imports it, which takes seconds."""
Row = dict[str, float]
MakeTrainer = Callable[..., Trainer]
FP32 = Execution("fp32", compile=False, checkpointing=False)
FOUR, ONE = BatchSize(4, 1), BatchSize(1, 1)


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

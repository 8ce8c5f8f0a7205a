"""How many clips a step learns from, and which: micro-batch, accumulation, and the order of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from musicgen_core.config import EFFECTIVE_BATCH, TrainSettings
from musicgen_core.devices import memory_gib
from musicgen_core.errors import ConfigError


@dataclass(frozen=True)
class BatchSize:
    """Clips in a micro-batch, and micro-batches in an optimizer step."""

    micro: int
    accumulation: int

    @property
    def effective(self) -> int:
        return self.micro * self.accumulation


def resolve_batch_size(settings: TrainSettings, device: torch.device) -> BatchSize:
    """Fill in what the user left open, so that a step sees 16 clips.

    Raises:
        ConfigError: one of the two was given and doesn't divide 16.
    """
    micro, accumulation = settings.batch_size, settings.gradient_accumulation_steps
    if micro != "auto" and accumulation is not None:
        return BatchSize(micro, accumulation)
    given = micro if micro != "auto" else accumulation
    if given is None:
        given = _preset(device)
    other, rest = divmod(EFFECTIVE_BATCH, given)
    if rest or not other:
        name = "batch_size" if micro != "auto" else "gradient_accumulation_steps"
        raise ConfigError(
            f"{name} {given} doesn't divide the {EFFECTIVE_BATCH} clips of a step",
            "Give both batch_size and gradient_accumulation_steps",
        )
    if micro == "auto" and accumulation is not None:
        return BatchSize(other, accumulation)
    return BatchSize(given, other)


def _preset(device: torch.device) -> int:
    """The micro-batch at which musicgen-large and 30 s clips fit: A100 80 GB 4, V100 32 GB 2, T4 16 GB 1."""
    if device.type != "cuda":
        return 2
    return 4 if memory_gib(device) > 70 else 2 if memory_gib(device) > 28 else 1


@dataclass(frozen=True)
class DataOrder:
    """Which clips each step sees: every epoch a new order, each clip once; an epoch's last step may be smaller.

    Attributes:
        clips: training clips.
        per_step: clips in a step.
        epochs: how often each clip is seen.
        max_steps: an earlier end, if any.
        seed: of the orders.
    """

    clips: int
    per_step: int
    epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.clips / self.per_step)

    @property
    def total_steps(self) -> int:
        return min(self.steps_per_epoch * self.epochs, self.max_steps or self.steps_per_epoch * self.epochs)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 1, of a step, from 1."""
        return (step - 1) // self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        """Whether the epoch's bookkeeping is due after this step; also where max_steps cuts an epoch short."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def positions(self, step: int) -> list[int]:
        """Positions among the training clips that a step, from 1, sees."""
        order = np.random.default_rng([self.seed, self.epoch_of(step)]).permutation(self.clips)
        start = (step - 1) % self.steps_per_epoch * self.per_step
        return [int(position) for position in order[start : start + self.per_step]]

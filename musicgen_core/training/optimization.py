"""The optimizer of an adapter: its updates, its state in checkpoints, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from musicgen_core.config import TrainSettings
from musicgen_core.training.compute.model import FlatParameters


class AdapterOptimizer:
    """Updates an adapter's parameters, and their moving average if `ema` is given.

    Attributes:
        average: [total], fp32, the exponential moving average of the parameters; None without `ema`.
    """

    def __init__(self, flat: FlatParameters, settings: TrainSettings) -> None:
        self._flat, self._settings = flat, settings
        self._optimizer = torch.optim.AdamW(
            [flat.whole], lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.average = None if settings.ema is None else flat.whole.detach().clone()

    def set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def step(self) -> None:
        """Update the parameters from their gradients."""
        self._optimizer.step()

    def update_average(self, step: int) -> None:
        """Update the moving average, after the step of this number, from 1."""
        if self.average is not None:
            self.average.lerp_(self._flat.whole.detach(), 1 - average_decay(self._settings.ema or 0.0, step))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Set the parameters to their moving average, and back to the same bits afterwards."""
        assert self.average is not None
        with self._restoring():
            self._flat.whole.data.copy_(self.average)
            yield

    @contextmanager
    def loading_average(self) -> Iterator[None]:
        """Take what is loaded into the parameters meanwhile as their moving average."""
        assert self.average is not None
        with self._restoring():
            yield
            self.average.copy_(self._flat.whole.detach())

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        kept = self._flat.whole.detach().clone()
        try:
            yield
        finally:
            self._flat.whole.data.copy_(kept)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, as that of an optimizer of peft's single parameters."""
        own = self._optimizer.state_dict()
        (group,) = own["param_groups"]
        state = self._flat.split_state(own["state"])
        return {"state": state, "param_groups": [{**group, "params": list(range(self._flat.count))}]}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the result of `state`, after the parameters; a moving average restarts from them."""
        # Only the moments: weight decay and the like come from the settings, which may have changed.
        groups = self._optimizer.state_dict()["param_groups"]
        state = self._flat.join_state(saved["state"])
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        if self.average is not None:
            self.average.copy_(self._flat.whole.detach())


def average_decay(ema: float, step: int) -> float:
    """Return the decay of the moving average at a step, from 1.

    It rises to `ema`, as the warm-up of TensorFlow's ExponentialMovingAverage does: otherwise the untrained adapter
    would dominate the average of a short run.
    """
    return min(ema, (1 + step) / (10 + step))


def learning_rate(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Return the learning rate of a step, from 1: a linear warm-up, then `schedule`, which ends at 0 after the last."""
    warmup = settings.warmup_steps
    if step <= warmup:
        return settings.learning_rate * step / warmup
    done = (step - warmup - 1) / max(1, total_steps - warmup)
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    return settings.learning_rate * shape[settings.schedule]

"""The optimizer of a run: its updates, its state in checkpoints, and the moving average of the weights."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn

from musicgen_core.config import TrainSettings
from musicgen_core.training.compute.parameters import TrainedParameters

logger = logging.getLogger(__name__)

_GROUP_STATE = {
    "prodigy": ("d", "d_max", "d_hat", "d_numerator", "d_denom", "k"),
    "schedulefree": ("k", "weight_sum", "lr_max", "scheduled_lr"),
}
"""What optimizers keep in their parameter group; its other values are settings, which may change when a run resumes."""
_TRAINED = "y"
"""Key of the schedule-free optimizer's training weights in a checkpoint, whose adapter has the averaged ones."""
_LOW_FOR_PRODIGY = 0.1
"""Below this, the learning rate was probably chosen for AdamW."""


class RunOptimizer:
    """Updates the trained parameters, and their moving average if `ema` is given.

    The weights to evaluate and to save are the parameters, except with the schedule-free optimizer: it computes
    gradients at one point, y, which the parameters hold, and evaluates another, x, an average that it computes from y
    and its state z (Defazio et al. 2024). `evaluated` sets the parameters to x.

    Attributes:
        average: the exponential moving average of each of `trained.tensors`, fp32; None without `ema`.
    """

    def __init__(self, trained: TrainedParameters, settings: TrainSettings) -> None:
        self._trained, self._settings = trained, settings
        self.is_schedule_free = settings.optimizer_name == "schedulefree"
        self._optimizer = _optimizer(trained.tensors, settings)
        self.average = None if settings.ema is None else self._copies()

    def set_rate(self, rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def step(self) -> None:
        """Update the parameters from their gradients."""
        self._optimizer.step()

    def update_average(self, step: int) -> None:
        """Update the moving average, after the step of this number, from 1."""
        for average, tensor in zip(self.average or (), self._trained.tensors, strict=self.average is not None):
            average.lerp_(tensor.detach(), 1 - average_decay(self._settings.ema or 0.0, step))

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Set the parameters to the weights to evaluate and to save, and back to the same bits afterwards."""
        if not self.is_schedule_free:
            yield
            return
        optimizer: Any = self._optimizer
        with self._restoring():
            optimizer.eval()
            try:
                yield
            finally:
                optimizer.train()  # rounds the parameters, which are then restored

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Set the parameters to their moving average, and back to the same bits afterwards."""
        assert self.average is not None
        with self._restoring():
            self._set(self.average)
            yield

    @contextmanager
    def loading_average(self) -> Iterator[None]:
        """Take what is loaded into the parameters meanwhile as their moving average."""
        with self._restoring():
            yield
            self._restart_average()

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        kept = self._copies()
        try:
            yield
        finally:
            self._set(kept)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, by single parameter as far as the optimizer has it so."""
        own = self._optimizer.state_dict()
        (group,) = own["param_groups"]
        states = own["state"]
        if self.is_schedule_free:
            tensors = enumerate(self._trained.tensors)
            states = {i: {**states.get(i, {}), _TRAINED: tensor.detach()} for i, tensor in tensors}
        saved = self._trained.saved(states, is_adamw=self._settings.optimizer_name == "adamw")
        return {**saved, "param_groups": [{**group, "params": list(range(self._trained.count))}]}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore the result of `state`, after the parameters; a moving average restarts from them."""
        # Only the moments: weight decay and the like come from the settings, which may have changed.
        (group,) = self._optimizer.state_dict()["param_groups"]
        (group_then,) = saved["param_groups"]
        kept = _GROUP_STATE.get(self._settings.optimizer_name, ())
        group |= {name: group_then[name] for name in kept if name in group_then}
        states = self._trained.loaded(saved)
        trained = [state.pop(_TRAINED) for _, state in sorted(states.items())] if self.is_schedule_free else []
        self._optimizer.load_state_dict({"state": states, "param_groups": [group]})
        if trained:
            self._set(trained)
        self._restart_average()

    def _restart_average(self) -> None:
        if self.average is not None:
            self.average = self._copies()

    def _copies(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self._trained.tensors]

    def _set(self, values: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._trained.tensors, values, strict=True):
            tensor.data.copy_(value)


def _optimizer(parameters: Sequence[nn.Parameter], settings: TrainSettings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizer: Any
    match settings.optimizer_name:
        case "adamw":
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        case "prodigy":
            from prodigyopt import Prodigy

            if rate < _LOW_FOR_PRODIGY:
                logger.warning(
                    "prodigy finds the learning rate itself, and multiplies it by learning_rate, which is %g: 1 is "
                    "usual",
                    rate,
                )
            with redirect_stdout(io.StringIO()):  # it prints that its weight decay is decoupled
                # Without bias correction, which keeps it near its first step size, 1e-6, for many times as many steps.
                optimizer = Prodigy(parameters, lr=rate, weight_decay=decay, safeguard_warmup=settings.warmup_steps > 0)
        case "schedulefree":
            from schedulefree import AdamWScheduleFree

            optimizer = AdamWScheduleFree(parameters, lr=rate, weight_decay=decay)
            optimizer.train()
        case "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            optimizer = AdamW8bit(parameters, lr=rate, weight_decay=decay)
    found: torch.optim.Optimizer = optimizer
    return found


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

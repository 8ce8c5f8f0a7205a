"""What a run trains, an adapter or a whole model, with its optimizer: how it is restored, and collected to be saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from musicgen_core.config import TrainSettings
from musicgen_core.errors import Cancelled, TrainingError
from musicgen_core.model.adapters import AdapterConfig
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.lora import add_lora
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.full_model import FullTrainingModel
from musicgen_core.training.compute.model import TrainingModel
from musicgen_core.training.files.checkpoint import snapshot
from musicgen_core.training.optimization import RunOptimizer
from musicgen_core.training.processes.distributed import LostRank, World


@dataclass(frozen=True)
class _Collected:
    """A sharded state, whole in the memory of the main rank."""

    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]


class Learner:
    """The trained tensors, their optimizer, and their moving average.

    With `train all`, several ranks share the weights: each has a shard. To save them, `collecting` gathers the state on
    the main rank; at other times no rank has it whole. In one process the saved weights are the tensors of training
    themselves, of which a copy might not fit: they have to be written before the next step.

    Args:
        lm: the base model. For an adapter it is frozen and packed; with `train all` it is in fp32.

    Attributes:
        lora: the shape of the adapter; None with `train all`.
        model: peft's model; the language model itself with `train all`.
    """

    def __init__(self, lm: MusicgenLM, settings: TrainSettings, execution: Execution, world: World) -> None:
        self._world = world
        self.lora = AdapterConfig.of(settings, settings.lora_r) if settings.train == "lora" else None
        self.model: Any = lm if self.lora is None else add_lora(lm, self.lora, settings.seed)
        self.computation: TrainingModel | FullTrainingModel = (
            FullTrainingModel(lm, execution, world)
            if self.lora is None
            else TrainingModel(self.model, settings.lora_dropout, execution)
        )
        self.optimizer = RunOptimizer(self.computation.trained, settings)
        self._collected: _Collected | None = None
        self._is_in_hook = False

    def restore(
        self, weights: dict[str, Tensor], optimizer: dict[str, Any], average: dict[str, Tensor] | None = None
    ) -> None:
        """Restore a saved state, which every rank has.

        Args:
            weights: the trained tensors.
            optimizer: the result of `optimizer_state`.
            average: their moving average; without it, an average restarts from them.
        """
        self.computation.load(weights, "in the checkpoint")
        self.optimizer.restore(optimizer)
        if average is not None and self.optimizer.average is not None:
            with self.optimizer.loading_average():
                self.computation.load(average, "in the checkpoint")
        if self.computation.is_sharded and self._world.is_main:  # what is saved before the first step
            self._collected = _Collected(weights, None if self.optimizer.average is None else average, optimizer)

    def begin(self) -> None:
        """Drop the state that was restored, which the first step changes."""
        self._collected = None

    def weights(self) -> dict[str, Tensor]:
        """Return the trained tensors, by their names in files."""
        if self._collected is not None:
            return self._collected.weights
        with self.optimizer.evaluated():
            found = self.computation.weights()
            return snapshot(found) if self.optimizer.is_schedule_free else found

    def average(self) -> dict[str, Tensor] | None:
        """Return the moving average of the trained tensors; None without `ema`."""
        if self._collected is not None:
            return self._collected.average
        if self.optimizer.average is None:
            return None
        with self.optimizer.averaged():
            return snapshot(self.computation.weights())

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, by single parameter; of an adapter a copy on the CPU."""
        if self._collected is not None:
            return self._collected.optimizer
        state = self.optimizer.state()
        return state if self.lora is None else snapshot(state)

    @contextmanager
    def collecting(self, with_optimizer: bool = True) -> Iterator[None]:
        """Gather a sharded state on the main rank, for the hooks called meanwhile; all ranks must enter this."""
        if self.computation.is_sharded:
            average, optimizer = (self.average(), self.optimizer_state()) if with_optimizer else (None, {})
            self._collected = _Collected(self.weights(), average, optimizer)
        self._is_in_hook = True
        try:
            yield
            self._is_in_hook = False  # an error is that of one rank
        finally:
            self._collected = None

    def can_save(self, interruption: BaseException) -> bool:
        """Return whether the state can be saved when the run ends early.

        A sharded one only if this ends all ranks at the same point; else the last save remains.
        """
        if not self.computation.is_sharded:
            return True
        ends_all = isinstance(interruption, Cancelled | TrainingError) and not isinstance(interruption, LostRank)
        return ends_all and not self._is_in_hook

"""Language models of which a run trained all weights (`train all`): their content, its checks, and their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.errors import AdapterError
from musicgen_core.language import message
from musicgen_core.model.adapter_values import check_adapter_values, check_facts, check_tensors
from musicgen_core.model.adapters import Adapter, are_of_different_bases, load_adapter
from musicgen_core.model.audiocraft_format import from_audiocraft
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import FULL_MODELS


@dataclass(frozen=True)
class TrainedModel:
    """A language model of which a run trained all weights.

    Attributes:
        weights: by this project's names; in fp32 in the run and its checkpoints, in full models in the base model's
            precision.
        epoch: epoch of its last step, from 1.
        global_step: optimizer steps that it was trained for.
        loss: training loss of the last step, in nats.
        base_model: identity of the base model, see `BaseModel.identity`.
    """

    weights: dict[str, Tensor]
    epoch: int
    global_step: int
    loss: float
    base_model: str

    def check_base(self, model: BaseModel, where: str) -> None:
        """Check that the weights were trained from those of `model`.

        Raises:
            AdapterError: they were trained from others.
        """
        if are_of_different_bases(self.base_model, model.identity):
            raise AdapterError(
                message(
                    "the model {where} was trained from {base_model}, but the base model is {identity}",
                    where=where,
                    base_model=self.base_model,
                    identity=model.identity,
                ),
                message("Give --model the one that it was trained from"),
            )

    @property
    def facts(self) -> dict[str, Any]:
        """Return everything but the weights."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "weights"}

    def checkpoint(self, model: BaseModel) -> dict[str, Any]:
        """Return the content of a full model, which stock audiocraft loads, in the precision of the base model."""
        dtypes = {name: tensor.dtype for name, tensor in model.lm_state().items()}
        weights = {name: tensor.detach().to("cpu", dtypes[name]) for name, tensor in self.weights.items()}
        return {**model.checkpoint_with(weights), **self.facts}


Learned = Adapter | TrainedModel
"""What a training run learns."""


def tensors_of(learned: Learned) -> dict[str, Tensor]:
    return learned.lora if isinstance(learned, Adapter) else learned.weights


def with_tensors(learned: Learned, tensors: dict[str, Tensor]) -> Learned:
    """Return a copy with other tensors."""
    return replace(learned, lora=tensors) if isinstance(learned, Adapter) else replace(learned, weights=tensors)


def learned_of(values: Mapping[str, Any]) -> Learned:
    """Return an adapter or a trained model of the values of a checkpoint.

    Raises:
        ValueError: a value is missing, has the wrong type, or is not finite; it is named.
    """
    if "lora" in values:
        check_adapter_values(values)
        return Adapter(**{field.name: values[field.name] for field in fields(Adapter)})
    return _trained_model(values)


def _trained_model(values: Mapping[str, Any]) -> TrainedModel:
    check_facts(values)
    check_tensors(values["weights"])
    return TrainedModel(**{field.name: values[field.name] for field in fields(TrainedModel)})


def load_trained_model(path: UPath) -> TrainedModel:
    """Load a full model of a run with `train all`, with memory-mapped weights.

    Raises:
        AdapterError: the file is damaged, or no such model.
    """
    with storage.staged(path) as local:
        try:
            storage.require_file(path)
            values = tensor_files.load(Path(local), mmap=True, verify="pickle")
            return _trained_model({**values, "weights": from_audiocraft(values["best_state"])})
        except Exception as error:  # torch.load raises many kinds on a damaged file
            raise AdapterError(
                message(
                    "{path} can't be read as a model that a run trained whole ({name}: {error})",
                    path=path,
                    name=type(error).__name__,
                    error=error,
                ),
                message("Give a full model of a run with --train all"),
            ) from error


def load_learned(path: UPath) -> Learned:
    """Load what a run has learned: an adapter, or a full model in its directory.

    Raises:
        AdapterError: the file is damaged, or something else.
    """
    return load_trained_model(path) if path.parent.name == FULL_MODELS else load_adapter(path)

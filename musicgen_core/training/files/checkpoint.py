"""Checkpoints: what is learned, optimizer state, progress, and the values that must not change when a run resumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.errors import RunDirectoryError
from musicgen_core.language import message
from musicgen_core.model.adapter_values import check_tensors
from musicgen_core.model.trained_model import Learned, TrainedModel, learned_of, tensors_of, with_tensors


@dataclass
class Progress:
    """The progress of a training run, saved with every checkpoint.

    Attributes:
        step: optimizer steps done.
        loss: training loss of the last step.
        epoch_loss_sum: sum of the losses of the clips seen in the current epoch.
        epoch_clips: number of those clips.
        best_loss: the lowest validation loss, or without validation clips the lowest training loss of an epoch.
        best_is_average: whether the moving average of the weights was best, rather than the weights.
        validations_without_gain: validations since the best one.
        pending: the metrics of the last step, until they are written and the end of its epoch, if any, is processed.
        skipped: steps skipped because loss or gradients weren't finite.
        skipped_in_a_row: those since the last step that wasn't skipped.
        loss_scale: loss scale of fp16; None in other precisions.
    """

    step: int = 0
    loss: float = float("nan")
    epoch_loss_sum: float = 0.0
    epoch_clips: int = 0
    best_loss: float | None = None
    best_epoch: int | None = None
    best_step: int | None = None
    validations_without_gain: int = 0
    pending: dict[str, float] | None = None
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss_scale: float | None = None
    best_is_average: bool = False


class LearnerState(Protocol):
    """The tensors of a run that are saved: a learner's."""

    def average(self) -> dict[str, Tensor] | None:
        """Return the moving average of the trained tensors; None without `ema`."""

    def optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, in terms of single parameters."""


class TrainingState(Protocol):
    """The state of a run that is saved: a trainer's."""

    @property
    def progress(self) -> Progress: ...

    @property
    def learner(self) -> LearnerState: ...

    def learned(self, base_model: str) -> Learned:
        """Return what is learned as it is now; `base_model` is the hash of its base model's weights."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run, without a frozen base model.

    Attributes:
        learned: the adapter, or the model with `train all`.
        optimizer: state of the optimizer, as `Learner.optimizer_state` returns it.
        fixed: values that must be the same when the run resumes; see resuming.py.
        owed: names of full models of this step that may not have been written yet.
        average: moving average of the trained tensors; None without `ema`.
    """

    learned: Learned
    optimizer: dict[str, Any]
    progress: Progress
    fixed: dict[str, Any] = field(default_factory=dict)
    owed: list[str] = field(default_factory=list)
    average: dict[str, Tensor] | None = None

    def to_plain(self) -> dict[str, Any]:
        return {
            **vars(self.learned),
            "optimizer": self.optimizer,
            "progress": asdict(self.progress),
            "fixed": self.fixed,
            "owed": self.owed,
            **({"average": self.average} if self.average is not None else {}),
        }

    @property
    def best(self) -> Learned:
        """What is learned, or its moving average if that is the best."""
        return self.averaged if self.averaged is not None and self.progress.best_is_average else self.learned

    @property
    def averaged(self) -> Learned | None:
        """What is learned with the moving average of its tensors; None without `ema`."""
        return None if self.average is None else with_tensors(self.learned, self.average)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint that `to_plain` was called on.

        Raises:
            Exception: values are missing, of another type, or not finite.
        """
        learned = learned_of(values)
        moments = _tensors_in(values["optimizer"], "optimizer")
        check_tensors({name: tensor for name, tensor in moments.items() if tensor.dtype != torch.uint8})  # of 8 bits
        average = values.get("average")
        check_tensors(average or {})
        return cls(
            learned=learned,
            optimizer=values["optimizer"],
            progress=Progress(**values["progress"]),
            fixed=values["fixed"],
            owed=values["owed"],
            average=average,
        )


def save_checkpoint(checkpoint: Checkpoint, target: UPath) -> None:
    with storage.publish(target) as path:
        tensor_files.save(checkpoint.to_plain(), path)


def load_checkpoint(path: UPath) -> Checkpoint:
    """Read `latest.pt`, `checkpoint_step_*.pt`, or what `checkpoint_epoch_*.pt` holds under `resume`.

    Raises:
        RunDirectoryError: the file is missing or damaged, or a run can't resume from it.
    """
    if not path.exists():
        raise RunDirectoryError(
            message("there is no checkpoint {path}", path=path),
            message("Give the path of a checkpoint_*.pt or latest.pt"),
        )
    with storage.staged(path) as local:
        try:
            storage.require_file(path)
            values = tensor_files.load(local, mmap=True)
            values = values.get("resume", values)
            checkpoint = Checkpoint.from_plain(values) if "optimizer" in values else None
        except Exception as error:  # torch.load raises many kinds on a damaged file
            raise RunDirectoryError(
                message(
                    "the checkpoint {path} is damaged ({name}: {error})",
                    path=path,
                    name=type(error).__name__,
                    error=error,
                ),
                message("Resume from another checkpoint"),
            ) from error
        if checkpoint is not None and isinstance(checkpoint.learned, TrainedModel):
            return checkpoint  # up to 52 GB, which stay mapped until the run has restored them
        if checkpoint is not None:
            # Copies, since the file may be replaced while the run that resumed from it continues.
            learned = with_tensors(checkpoint.learned, snapshot(tensors_of(checkpoint.learned)))
            return replace(
                checkpoint,
                learned=learned,
                optimizer=snapshot(checkpoint.optimizer),
                average=snapshot(checkpoint.average),
            )
    raise RunDirectoryError(
        message("{path} holds weights but not what resuming needs", path=path),
        message("Resume from latest.pt or a checkpoint_*.pt, or start a new training with --init-adapter"),
    )


def _tensors_in(value: Any, name: str) -> dict[str, Tensor]:
    """Return the tensors in nested dicts, by the path to each."""
    if isinstance(value, Tensor):
        return {name: value}
    entries = value.items() if isinstance(value, dict) else ()
    return {path: one for key, entry in entries for path, one in _tensors_in(entry, f"{name}.{key}").items()}


def snapshot(value: Any) -> Any:
    """Return a copy on the CPU that later changes of the original don't affect."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [snapshot(entry) for entry in value]
    return value

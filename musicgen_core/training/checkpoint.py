"""What a training keeps: where its files are, what resuming needs, and how a checkpoint is found again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import RunDirectoryError
from musicgen_core.model.lora import Adapter


@dataclass
class Progress:
    """How far a training is. Saved with every checkpoint.

    Attributes:
        step: optimizer steps done.
        loss: training loss of the last step.
        epoch_loss_sum, epoch_clips: of the clips seen in the current epoch.
        best_loss, best_epoch: the lowest validation loss (without validation clips, training loss) of an epoch.
        pending: the metrics of the last step until they are written and, where it ends its epoch, that is done.
    """

    step: int = 0
    loss: float = float("nan")
    epoch_loss_sum: float = 0.0
    epoch_clips: int = 0
    best_loss: float | None = None
    best_epoch: int | None = None
    pending: dict[str, float] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """Everything resuming needs beside the frozen base model."""

    adapter: Adapter
    optimizer: dict[str, Any]
    progress: Progress

    def to_plain(self) -> dict[str, Any]:
        return {**vars(self.adapter), "optimizer": self.optimizer, "progress": asdict(self.progress)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Checkpoint:
        adapter = Adapter(**{name: values[name] for name in Adapter.__dataclass_fields__})
        return cls(adapter, values["optimizer"], Progress(**values["progress"]))


@dataclass(frozen=True)
class RunDirectory:
    """The files of one training. `stage` is local: `root` itself where that is local."""

    root: UPath
    stage: Path

    @property
    def latest(self) -> UPath:
        return self.root / "latest.pt"

    @property
    def config(self) -> UPath:
        return self.root / "config.json"

    def lora(self, name: str) -> UPath:
        return self.root / "lora_weights" / f"{name}.pt"

    def full_model(self, name: str) -> UPath:
        return self.root / "full_models" / f"{name}.pt"

    def step_checkpoint(self, step: int) -> UPath:
        return self.root / f"checkpoint_step_{step}.pt"

    def has_training(self) -> bool:
        return self.latest.exists() or any(self._older_checkpoints())

    def read_config(self) -> dict[str, Any] | None:
        try:
            return json.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunDirectoryError(f"{self.config} is damaged ({error})", "Use another run directory") from error

    def write_config(self, values: Mapping[str, Any]) -> None:
        storage.write_text(self.config, json.dumps(values, indent=1, ensure_ascii=False))

    def upload_stage(self) -> None:
        """Bring what is written locally (metrics, WandB's files, pictures) to a remote run directory."""
        if not storage.is_local(self.root):
            storage.upload_tree(self.stage, self.root)

    def find_checkpoint(self) -> tuple[Checkpoint, UPath] | None:
        """The newest checkpoint that can be read: latest.pt, else the one before. None: nothing was trained here.

        Raises:
            RunDirectoryError: there are checkpoints, and all are damaged.
        """
        damaged: list[RunDirectoryError] = []
        found = _first_readable([self.latest], damaged)
        if found is None:
            # By step, not by time: copies and some object stores don't keep times.
            older = [_first_readable(paths, damaged) for paths in self._older_checkpoints()]
            found = max(filter(None, older), key=lambda one: one[0].progress.step, default=None)
        if found is None and damaged:
            raise RunDirectoryError(
                f"no checkpoint in {self.root} can be read: {damaged[0]}",
                "Start again in another run directory, with --init-adapter if a *_lora.pt is whole",
            )
        return found

    def files_after(self, step: int) -> list[UPath]:
        """Weights and checkpoints of later steps than `step`, and those that can't be read."""
        adapters = self.root / "lora_weights"
        by_step, by_epoch = self._older_checkpoints()
        files = [self.latest, *by_step, *by_epoch, *(adapters.glob("*.pt") if adapters.is_dir() else ())]
        later = [path for path in files if path.exists() and _step_of(path) > step]
        merged = [self.full_model(kind + "_model") for kind in ("best", "final") if self.lora(kind + "_lora") in later]
        return later + [path for path in merged if path.exists()]

    def _older_checkpoints(self) -> tuple[list[UPath], list[UPath]]:
        """Checkpoints beside latest.pt, of steps and of epochs, each the newest first."""
        return _numbered(self.root, "checkpoint_step_"), _numbered(self.root / "full_models", "checkpoint_epoch_")


def _numbered(folder: UPath, prefix: str) -> list[UPath]:
    """`{prefix}{number}.pt` in `folder`, the highest number first."""
    found = folder.glob(f"{prefix}*.pt") if folder.is_dir() else ()
    numbered = [path for path in found if path.stem.removeprefix(prefix).isdecimal()]
    return sorted(numbered, key=lambda path: int(path.stem.removeprefix(prefix)), reverse=True)


def _first_readable(paths: Sequence[UPath], damaged: list[RunDirectoryError]) -> tuple[Checkpoint, UPath] | None:
    """The first of `paths` that can be read; the errors of those before it are added to `damaged`."""
    for path in paths:
        if path.exists():
            try:
                return load_checkpoint(path), path
            except RunDirectoryError as error:
                damaged.append(error)
    return None


def save_checkpoint(checkpoint: Checkpoint, target: UPath) -> None:
    with storage.publish(target) as path:
        torch.save(checkpoint.to_plain(), path)


def load_checkpoint(path: UPath) -> Checkpoint:
    """Read `latest.pt`, `checkpoint_step_*.pt`, or what `checkpoint_epoch_*.pt` holds under `resume`.

    Raises:
        RunDirectoryError: damaged, or a file that can't be resumed from.
    """
    if not path.exists():
        raise RunDirectoryError(f"there is no checkpoint {path}", "Give the path of a checkpoint_*.pt or latest.pt")
    with storage.staged(path) as local:
        try:
            values = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
            values = values.get("resume", values)
        except Exception as error:  # torch.load raises many kinds on a damaged file
            raise RunDirectoryError(
                f"the checkpoint {path} is damaged ({type(error).__name__}: {error})", "Resume from another checkpoint"
            ) from error
        if "optimizer" not in values:
            raise RunDirectoryError(
                f"{path} holds weights but not what resuming needs",
                "Resume from latest.pt or a checkpoint_*.pt, or start a new training with --init-adapter",
            )
        # Copies: the file may be replaced while the training that it started still runs.
        return Checkpoint.from_plain(_copied(values))


def _step_of(path: UPath) -> float:
    """The step that an adapter or a checkpoint is of; infinity if it can't be read."""
    with storage.staged(path) as local:
        try:
            values = torch.load(local, map_location="cpu", weights_only=True, mmap=True)
            return values.get("resume", values)["global_step"]
        except Exception:  # torch.load raises many kinds on a damaged file
            return math.inf


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value

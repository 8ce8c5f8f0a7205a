"""What a training keeps: where its files are, what resuming needs, and how a checkpoint is found again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
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
        pending: the metrics of the last step where its epoch's end is not done yet, so not written yet.
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
        return self.latest.exists() or any(True for _ in self._older_checkpoints())

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
        damaged = []
        for path in [self.latest, *self._older_checkpoints()]:
            if not path.exists():
                continue
            try:
                return load_checkpoint(path), path
            except RunDirectoryError as error:
                damaged.append(str(error))
        if damaged:
            raise RunDirectoryError(
                f"no checkpoint in {self.root} can be read: {damaged[0]}",
                "Start again in another run directory, with --init-adapter if a *_lora.pt is whole",
            )
        return None

    def checkpoints_after(self, step: int) -> list[UPath]:
        """Checkpoints of later steps than `step`, beside latest.pt."""
        return [path for path in self._older_checkpoints() if load_checkpoint(path).progress.step > step]

    def _older_checkpoints(self) -> Iterator[UPath]:
        """Checkpoints beside latest.pt, the newest first."""
        found: list[UPath] = []
        for folder, pattern in (
            (self.root, "checkpoint_step_*.pt"),
            (self.root / "full_models", "checkpoint_epoch_*.pt"),
        ):
            if folder.is_dir():
                found += folder.glob(pattern)
        yield from sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


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


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_copied(entry) for entry in value]
    return value

"""Upload a run's samples and adapters to WandB, beside its metrics."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from musicgen_core import storage
from musicgen_core.errors import raise_if_interrupted
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import SHARDS
from musicgen_core.tracking import AudioFile, Wandb
from musicgen_core.training.files.checkpoint import Progress
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.loop import Trainer
from musicgen_core.training.samples import Samples

logger = logging.getLogger(__name__)


class WandbArtifacts:
    """Uploads samples and adapters of a run. Errors are logged: they must not end the run.

    Args:
        run: the run on WandB.
        files: the run directory.
        model: the base model.
        samples: the run's samples.
        versions: versions of the packages that the adapters were trained with.
    """

    def __init__(
        self, run: Wandb, files: RunDirectory, model: BaseModel, samples: Samples, versions: Mapping[str, str]
    ) -> None:
        self._run, self._files, self._model, self._samples, self._versions = run, files, model, samples, versions
        self._best_step: int | None = None

    def epoch(self, epoch: int, progress: Progress) -> None:
        """Upload the samples of an epoch, and the best adapter if it has changed."""
        self.samples(epoch, progress.step)
        if progress.best_step != self._best_step:
            self._best_step = progress.best_step
            self.adapter("best")

    def samples(self, epoch: int, step: int) -> None:
        """Upload the samples of an epoch, under a key per prompt, so that one slider goes through the epochs."""
        clips = {
            f"samples/{i:02d}": AudioFile(path, prompt)
            for i, (prompt, path) in enumerate(self._samples.local_files(epoch))
        }
        if not clips:
            return
        try:
            self._run.log_audio(f"samples of epoch {epoch}", {"global_step": step, "epoch": epoch}, clips)
        except Exception as error:
            _report(error, f"the samples of epoch {epoch}")

    def adapter(self, alias: str) -> None:
        """Upload the `best` or the `final` adapter, if it exists: there is no best one without a finite loss."""
        file = self._files.adapter(f"{alias}_lora")
        if not self._run.is_on:
            return
        try:
            if file.exists():
                with storage.staged(file) as local:
                    adapter = load_adapter(storage.as_path(local))
                    about = {"epoch": adapter.epoch, "global_step": adapter.global_step, "loss": adapter.loss}
                    self._run.log_adapter(local, alias, {**self._about(file.name), **about, "lora": adapter.config})
        except Exception as error:
            _report(error, f"the {alias} adapter")

    def _about(self, name: str) -> dict[str, Any]:
        return {
            "base_model": self._model.identity,
            "model": self._model.name,
            "run": self._files.root.name,
            "versions": dict(self._versions),
            "load": f'uv run musicgen-flows generate OUT --model {self._model.name} --adapter {name} --prompt "…"',
        }


def shown_settings(config: Mapping[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Return the settings shown on WandB: config.json without long values, and the run's size."""
    device = trainer.computation.device
    return {
        **{name: value for name, value in config.items() if name != SHARDS},
        "training_clips": len(trainer.batches.training_clips),
        "validation_clips": len(trainer.batches.validation_clips),
        "total_steps": trainer.order.total_steps,
        "trained_parameters": sum(tensor.numel() for tensor in trainer.adapter_tensors().values()),
        "processes": trainer.world.size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _report(error: Exception, what: str) -> None:
    raise_if_interrupted(error)
    logger.warning("WandB misses %s (%s: %s)", what, type(error).__name__, error)

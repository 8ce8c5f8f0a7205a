"""The files of a run directory: their paths, and the checkpoints that a run can resume from."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.errors import RunDirectoryError
from musicgen_core.language import message
from musicgen_core.run_layout import (
    ADAPTERS,
    BEST_ADAPTER,
    BEST_MODEL,
    EMA_ADAPTER,
    EMA_MODEL,
    EPOCH_ADAPTER,
    EPOCH_CHECKPOINT,
    FINAL_ADAPTER,
    FINAL_MODEL,
    FULL_MODELS,
    LEARNING_RATE_PLOT,
    LOSS_PLOT,
    METRICS,
    OWED,
    PERPLEXITY_PLOT,
    SAMPLES,
    STEP_CHECKPOINT,
    SUPERSEDED,
    WEIGHT_FOLDERS,
    RunConfig,
    RunLayout,
    load_config,
    parse_sample_name,
)
from musicgen_core.strict_json import strict_json
from musicgen_core.training.files.checkpoint import Checkpoint, load_checkpoint

logger = logging.getLogger(__name__)


def begins_new(root: UPath, resume: str) -> bool:
    """Return whether `--resume` starts a new run, rather than from a checkpoint."""
    return resume in ("auto", "never") and not RunDirectory(root, Path()).has_training()


@dataclass(frozen=True)
class RunDirectory(RunLayout):
    """A run directory, and which of its files resuming can use.

    Attributes:
        stage: a local directory for what is written line by line: `root` itself where that is local.
    """

    stage: Path
    _uploaded: dict[Path, storage.Version] = field(default_factory=dict, repr=False, compare=False)

    @property
    def local_metrics(self) -> Path:
        return self.stage / METRICS

    def step_checkpoints(self) -> list[UPath]:
        """Return the step checkpoints, the newest first, like the next two methods."""
        return _numbered(self.root, STEP_CHECKPOINT)

    def epoch_models(self) -> list[UPath]:
        return _numbered(self.root / FULL_MODELS, EPOCH_CHECKPOINT)

    def owed_checkpoints(self) -> list[UPath]:
        return _numbered(self.root / OWED, STEP_CHECKPOINT)

    def has_training(self) -> bool:
        return self.latest.exists() or any(self._older_checkpoints())

    def check_own(self) -> None:
        """Check that the directory is empty or that of a run.

        Raises:
            RunDirectoryError: the run would overwrite files that no run of this project wrote, or a file has the name
                of one of the run's folders.
        """
        self._check_folders()
        if self.has_training():
            return
        config = self.read_config()
        if config is not None and config.is_training:
            return
        foreign = self.config if config is not None else self._first_of_run()
        if foreign is not None:
            raise RunDirectoryError(
                message(
                    "{root} is not the directory of a run: the run would write over {foreign}",
                    root=self.root,
                    foreign=foreign,
                ),
                message("Give a directory that is empty, or not there yet"),
            )

    def _check_folders(self) -> None:
        if not storage.is_local(self.root):  # an object store has no folders
            return
        for folder in (*(self.root / name for name in (*WEIGHT_FOLDERS, SAMPLES, SUPERSEDED)), self.prior):
            if folder.exists() and not folder.is_dir():
                raise RunDirectoryError(
                    message("{folder} is not a directory, but a run writes into it", folder=folder),
                    message("Rename it, or give another run directory"),
                )

    def _first_of_run(self) -> UPath | None:
        """Return a file with a name that a run uses, or None."""
        names = (METRICS, LOSS_PLOT, PERPLEXITY_PLOT, LEARNING_RATE_PLOT)
        if found := next((path for name in names if (path := self.root / name).exists()), None):
            return found
        for folder in (self.root / name for name in (*WEIGHT_FOLDERS, SAMPLES)):
            patterns = ("*.pt", "epoch_*.wav")
            if folder.is_dir() and (found := next((path for one in patterns for path in folder.glob(one)), None)):
                return found
        return None

    def holds(self, path: UPath) -> bool:
        """Return whether a path lies in this directory."""
        if storage.is_local(self.root) and storage.is_local(path):
            return Path(str(path)).resolve().is_relative_to(Path(str(self.root)).resolve())
        return str(path).startswith(f"{str(self.root).rstrip('/')}/")

    def read_config(self) -> RunConfig | None:
        """Return the content of config.json, or None if it is missing or damaged: a run can resume without it."""
        try:
            return load_config(self.root)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s can't be read and counts as absent (%s)", self.config, error)
            return None

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write config.json; a damaged one is renamed first."""
        try:
            load_config(self.root)
        except FileNotFoundError:
            pass
        except (OSError, ValueError):
            aside = storage.free_name_beside(self.config)
            storage.move(self.config, aside)
            logger.warning("the damaged %s is now %s", self.config, aside)
        storage.write_text(self.config, strict_json(values, indent=1, ensure_ascii=False))

    def upload_stage(self) -> None:
        """Upload the stage (metrics, WandB's files, plots) to a remote run directory."""
        if not storage.is_local(self.root):
            storage.upload_tree(self.stage, self.root, self._uploaded)

    def fetch_metrics(self) -> None:
        """Download a remote run directory's metrics to the stage."""
        if not self.local_metrics.exists() and self.metrics.exists():
            self.local_metrics.parent.mkdir(parents=True, exist_ok=True)
            self.local_metrics.write_bytes(self.metrics.read_bytes())

    def delete_partials(self) -> None:
        """Delete the partial files of a killed run, and publish those that it had finished writing.

        The caller must hold the run directory's lock.
        """
        if storage.is_local(self.root):
            for folder in (self.root, *(self.root / name for name in (*WEIGHT_FOLDERS, SAMPLES))):
                for path in folder.glob("*.partial"):
                    if storage.is_partial(path.name) and not path.is_dir():
                        path.unlink(missing_ok=True)
                for path in folder.glob(f"*{storage.WHOLE}"):
                    storage.finish_replacement(Path(str(path)))

    def find_checkpoint(self) -> tuple[Checkpoint, UPath] | None:
        """Return the newest readable checkpoint and its path: latest.pt, or else the one before; None without any.

        Raises:
            RunDirectoryError: there are checkpoints, but all are damaged.
        """
        damaged: list[RunDirectoryError] = []
        found = _first_readable([self.latest], damaged)
        if found is None:
            # By step, not by time: copies and some object stores don't preserve times.
            older = [_first_readable(paths, damaged) for paths in self._older_checkpoints()]
            found = max(filter(None, older), key=lambda one: one[0].progress.step, default=None)
        if found is None and damaged:
            raise RunDirectoryError(
                message("no checkpoint in {root} can be read: {damaged}", root=self.root, damaged=damaged[0]),
                message("Start again in another run directory, with --init-adapter if a *_lora.pt is whole"),
            )
        return found

    def files_after(self, step: int) -> list[UPath]:
        """Return weights and checkpoints of steps after `step`, and those that can't be read."""
        adapters = self.root / ADAPTERS
        older = [path for paths in self._older_checkpoints() for path in paths]
        files = [self.latest, *older, *(adapters.glob("*.pt") if adapters.is_dir() else ())]
        later = [path for path in files if path.exists() and self._step_of(path) > step]
        singles = {BEST_MODEL: BEST_ADAPTER, FINAL_MODEL: FINAL_ADAPTER, EMA_MODEL: EMA_ADAPTER}
        models = [(self.full_model(model), self.adapter(adapter)) for model, adapter in singles.items()]
        # A merged model records no step; its adapter does.
        return later + [
            model
            for model, adapter in models
            if model.exists() and (adapter in later if adapter.exists() else self._step_of(model) > step)
        ]

    def _samples_after(self, epochs: int) -> list[UPath]:
        found = self.samples.glob("epoch_*.wav") if self.samples.is_dir() else ()
        numbered = [(path, parse_sample_name(path.name)) for path in found]
        return [path for path, numbers in numbered if numbers is not None and numbers[0] > epochs]

    def _step_of(self, path: UPath) -> float:
        """Return a file's step, read from a smaller file if that avoids a download; infinity if it is unreadable."""
        if not storage.is_local(path):
            if path.stem.startswith(STEP_CHECKPOINT):
                return int(path.stem.removeprefix(STEP_CHECKPOINT))
            beside = self.adapter(path.stem.replace(EPOCH_CHECKPOINT, EPOCH_ADAPTER))  # 78 MB tell what 6 GB would
            path = beside if path.stem.startswith(EPOCH_CHECKPOINT) and beside.exists() else path
        return _step_in(path)

    def sample(self, name: str) -> UPath | None:
        """A file of `samples/`, which may not be uploaded yet; None if there is none."""
        places = (storage.as_path(self.stage), self.root)
        return next((path for place in places if (path := place / SAMPLES / name).exists()), None)

    def sample_names(self) -> list[str]:
        """Return the names of the files of `samples/`, those that are not uploaded yet too."""
        folders = (place / SAMPLES for place in (storage.as_path(self.stage), self.root))
        return sorted({path.name for folder in folders if folder.is_dir() for path in folder.iterdir()})

    def set_aside_after(self, step: int, epochs: int) -> UPath | None:
        """Move later files to a new folder, `superseded/{number}`, and return it; None if there are no such files.

        Args:
            step: the files that `files_after` returns for this step are moved.
            epochs: samples of later epochs are moved too.
        """
        later = [*self.files_after(step), *self._samples_after(epochs)]
        if not later:
            return None
        superseded = self.root / SUPERSEDED
        used = [int(path.name) for path in superseded.iterdir() if path.name.isdecimal()] if superseded.is_dir() else []
        folder = superseded / str(max(used, default=0) + 1)
        for path in later:
            storage.move(path, folder.joinpath(*path.relative_to(self.root).parts))
        return folder

    def _older_checkpoints(self) -> tuple[list[UPath], ...]:
        """Return the checkpoints other than latest.pt, by kind, the newest first."""
        return self.step_checkpoints(), self.epoch_models(), self.owed_checkpoints()


def _numbered(folder: UPath, prefix: str) -> list[UPath]:
    """Return the files `{prefix}{number}.pt` of a folder, the highest number first."""
    found = folder.glob(f"{prefix}*.pt") if folder.is_dir() else ()
    numbered = [path for path in found if path.stem.removeprefix(prefix).isdecimal()]
    return sorted(numbered, key=lambda path: int(path.stem.removeprefix(prefix)), reverse=True)


def _first_readable(paths: Sequence[UPath], damaged: list[RunDirectoryError]) -> tuple[Checkpoint, UPath] | None:
    """Return the first readable checkpoint of `paths`, and add the errors of those before it to `damaged`."""
    for path in paths:
        if path.exists():
            try:
                return load_checkpoint(path), path
            except RunDirectoryError as error:
                damaged.append(error)
    return None


def _step_in(path: UPath) -> float:
    """Return the step of an adapter or a checkpoint; infinity if it can't be read."""
    with storage.staged(path) as local:
        try:
            storage.require_file(path)
            values = tensor_files.load(local, mmap=True, verify="pickle")
            return int(values.get("resume", values)["global_step"])
        except Exception:  # torch.load raises many kinds on a damaged file
            return math.inf

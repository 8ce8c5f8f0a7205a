"""Check that a disk has enough free space for the files of a training run."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import RunDirectoryUnavailable
from musicgen_core.language import message
from musicgen_core.run_layout import (
    BEST_ADAPTER,
    BEST_MODEL,
    EMA_ADAPTER,
    EMA_MODEL,
    FINAL_ADAPTER,
    FINAL_MODEL,
    LATEST_ADAPTER,
    epoch_adapter,
)
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.wording import sized

_CHECKPOINT = {"adamw": 3, "prodigy": 6, "schedulefree": 4, "adamw8bit": 2}
"""A checkpoint is this many times as large as the trained tensors, which it holds beside the optimizer's state, such as
AdamW's two moments."""


def _checkpoint_size(settings: TrainSettings) -> int:
    """Return how many times as large as the trained tensors a checkpoint is."""
    return _CHECKPOINT[settings.optimizer_name] + (settings.ema is not None)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run's files, in bytes.

    Attributes:
        full_model: base and adapter merged, or with `train all` the model that was trained.
        trained: the trained tensors in fp32: those of an adapter, which has this size, too, or of the model.
    """

    full_model: int
    trained: int


@dataclass(frozen=True)
class Plan:
    """The length of a run, which determines how often it saves."""

    epochs: int
    steps: int


def check_disk_space(
    files: RunDirectory, settings: TrainSettings, sizes: Sizes, plan: Plan, set_aside: Collection[UPath] = ()
) -> None:
    """Compare the size of a run's future files with the free space of its disk, or of the local stage's disk.

    Args:
        settings: which files the run keeps.
        set_aside: files that are about to be moved to `superseded/` and will be written again.

    Raises:
        RunDirectoryError: they don't fit; names settings that would.
    """
    if not storage.is_local(files.root):
        _check_scratch(files, settings, sizes)
        return
    root = Path(str(files.root)).absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    needed = bytes_to_write(files, settings, sizes, plan, set_aside)
    if needed > free:
        others = [
            f"{option} ({sized(other_needed)})"
            for option, other in _smaller(settings)
            if (other_needed := bytes_to_write(files, other, sizes, plan, set_aside)) < needed
        ]
        raise RunDirectoryUnavailable(
            message(
                "the run will write {needed} to {root}, where {free} are free",
                needed=sized(needed),
                root=files.root,
                free=sized(free),
            ),
            message("Make room, use another disk, or write less: {options}", options=", ".join(others))
            if others
            else message("Make room"),
        )


def _check_scratch(files: RunDirectory, settings: TrainSettings, sizes: Sizes) -> None:
    """Check the disk on which files are staged for a remote run directory: one merged model and its checkpoint."""
    scratch = Path(tempfile.gettempdir())
    free = shutil.disk_usage(scratch).free
    needed = 2 * _checkpoint_size(settings) * sizes.trained + (
        sizes.full_model if settings.full_models != "none" else 0
    )
    if needed > free:
        raise RunDirectoryUnavailable(
            message(
                "{needed} at a time are written to {scratch} on their way to {root}, and {free} are free",
                needed=sized(needed),
                scratch=scratch,
                root=files.root,
                free=sized(free),
            ),
            message("Set TMPDIR to a folder on a larger disk, or give --full-models none")
            if settings.train == "lora"
            else message("Set TMPDIR to a folder on a larger disk"),
        )


def bytes_to_write(
    files: RunDirectory, settings: TrainSettings, sizes: Sizes, plan: Plan, set_aside: Collection[UPath] = ()
) -> int:
    """Return the bytes that a run will add to its directory; files that exist already are not counted again."""

    def count_existing(paths: Iterable[UPath]) -> int:
        return sum(path not in set_aside and path.exists() for path in paths)

    models = _models_to_come(files, settings, plan, count_existing)
    kept_steps = _kept(plan.steps // settings.save_every_steps, settings.kept)
    checkpoints = max(0, kept_steps - count_existing(files.step_checkpoints())) + 1 - count_existing([files.latest])
    checkpoints += 1  # the new latest.pt is written before the old one is replaced
    if settings.train == "all":
        # A new step checkpoint is written before the oldest is deleted.
        checkpoints += kept_steps > 0 and settings.kept is not None
        return models * sizes.full_model + checkpoints * _checkpoint_size(settings) * sizes.trained
    if settings.full_models != "none":
        checkpoints += 2  # sources of full models: one being written, and one queued
    if settings.full_models == "each_epoch":
        checkpoints += models  # each contains one
    names = [*map(epoch_adapter, range(1, plan.epochs + 1)), BEST_ADAPTER, FINAL_ADAPTER, LATEST_ADAPTER]
    names += [EMA_ADAPTER] if settings.ema is not None else []
    adapters = len(names) - count_existing(files.adapter(name) for name in names)
    return models * sizes.full_model + (checkpoints * _checkpoint_size(settings) + adapters) * sizes.trained


def _models_to_come(
    files: RunDirectory, settings: TrainSettings, plan: Plan, count_existing: Callable[[Iterable[UPath]], int]
) -> int:
    if settings.full_models == "none":
        return 0
    averages = [EMA_MODEL] if settings.train == "all" and settings.ema is not None else []
    singles = [files.full_model(name) for name in (BEST_MODEL, FINAL_MODEL, *averages)]
    to_come = len(singles) - count_existing(singles)
    if settings.full_models == "each_epoch":
        to_come += max(0, _kept(plan.epochs, settings.kept) - count_existing(files.epoch_models()))
    # A new one is written before the old one is replaced; the space is later that of final_model.pt, the last.
    return to_come + count_existing(singles[1:])


def _kept(count: int, keep_last: int | None) -> int:
    return count if keep_last is None else min(count, keep_last)


def _smaller(settings: TrainSettings) -> Iterator[tuple[str, TrainSettings]]:
    """Yield settings that write less, with their command-line options."""
    yield "--keep-last 1", settings.model_copy(update={"keep_last": 1})
    for value in ("best_and_final", "none") if settings.train == "lora" else ("best_and_final",):
        yield f"--full-models {value}", settings.model_copy(update={"full_models": value})
    if settings.train == "all" and settings.gpus == 1:
        yield "--optimizer adamw8bit", settings.model_copy(update={"optimizer_name": "adamw8bit"})

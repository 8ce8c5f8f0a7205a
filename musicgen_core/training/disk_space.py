"""Whether a disk has room for what a training is going to write."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import RunDirectoryError
from musicgen_core.language import message
from musicgen_core.run_layout import BEST_ADAPTER, BEST_MODEL, FINAL_ADAPTER, FINAL_MODEL, LATEST_ADAPTER, epoch_adapter
from musicgen_core.training.run_directory import RunDirectory
from musicgen_core.wording import sized

_CHECKPOINT = 3
"""Sizes of the adapter in a checkpoint: itself and AdamW's two moments."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of a file each: base and adapter merged, and an adapter's tensors alone."""

    full_model: int
    adapter: int


@dataclass(frozen=True)
class Plan:
    """How often a training saves, from its first step to its last."""

    epochs: int
    steps: int


def check_room(
    files: RunDirectory, settings: TrainSettings, sizes: Sizes, plan: Plan, set_aside: Collection[UPath] = ()
) -> None:
    """Compare what a training will write with the free room of a local disk, or of what is its stage.

    Args:
        set_aside: files that are about to be moved away, and will be written again.

    Raises:
        RunDirectoryError: it won't fit; with what would.
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
        raise RunDirectoryError(
            message(
                "the training will write {needed} to {root}, where {free} are free",
                needed=sized(needed),
                root=files.root,
                free=sized(free),
            ),
            message("Make room, use another disk, or write less: {options}", options=", ".join(others))
            if others
            else message("Make room"),
        )


def _check_scratch(files: RunDirectory, settings: TrainSettings, sizes: Sizes) -> None:
    """What goes to a remote run directory is written here first: a merged model at a time, and its checkpoint."""
    scratch = Path(tempfile.gettempdir())
    free = shutil.disk_usage(scratch).free
    needed = 2 * _CHECKPOINT * sizes.adapter + (sizes.full_model if settings.full_models != "none" else 0)
    if needed > free:
        raise RunDirectoryError(
            message(
                "{needed} at a time are written to {scratch} on their way to {root}, and {free} are free",
                needed=sized(needed),
                scratch=scratch,
                root=files.root,
                free=sized(free),
            ),
            message("Set TMPDIR to a folder on a larger disk, or give --full-models none"),
        )


def bytes_to_write(
    files: RunDirectory, settings: TrainSettings, sizes: Sizes, plan: Plan, set_aside: Collection[UPath] = ()
) -> int:
    """By how much the run directory grows until its training ends. What stays there already is not counted again."""

    def there(paths: Iterable[UPath]) -> int:
        return sum(path not in set_aside and path.exists() for path in paths)

    models = _models_to_come(files, settings, plan, there)
    kept_steps = _kept(plan.steps // settings.save_every_steps, settings.keep_last)
    checkpoints = max(0, kept_steps - there(files.step_checkpoints())) + 1 - there([files.latest])
    checkpoints += 1  # latest.pt is written beside before it replaces the old one
    if settings.full_models != "none":
        checkpoints += 2  # what full models are made from: of one being written, and of one waiting
    if settings.full_models == "each_epoch":
        checkpoints += models  # each has one in it
    names = [*map(epoch_adapter, range(1, plan.epochs + 1)), BEST_ADAPTER, FINAL_ADAPTER, LATEST_ADAPTER]
    adapters = len(names) - there(files.adapter(name) for name in names)
    return models * sizes.full_model + (checkpoints * _CHECKPOINT + adapters) * sizes.adapter


def _models_to_come(
    files: RunDirectory, settings: TrainSettings, plan: Plan, there: Callable[[Iterable[UPath]], int]
) -> int:
    if settings.full_models == "none":
        return 0
    singles = [files.full_model(name) for name in (BEST_MODEL, FINAL_MODEL)]
    to_come = len(singles) - there(singles)
    if settings.full_models == "each_epoch":
        to_come += max(0, _kept(plan.epochs, settings.keep_last) - there(files.epoch_models()))
    # One is written beside before it replaces another; else final_model.pt, the last, takes that room later.
    return to_come + there(singles[1:])


def _kept(count: int, keep_last: int | None) -> int:
    return count if keep_last is None else min(count, keep_last)


def _smaller(settings: TrainSettings) -> Iterator[tuple[str, TrainSettings]]:
    """Settings that write less, by what to give on the command line."""
    yield "--keep-last 1", settings.model_copy(update={"keep_last": 1})
    for value in ("best_and_final", "none"):
        yield f"--full-models {value}", settings.model_copy(update={"full_models": value})

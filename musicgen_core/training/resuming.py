"""Where a training goes on from, and whether what it is given is still the same training."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.errors import RunDirectoryError
from musicgen_core.language import message
from musicgen_core.run_layout import SHARDS
from musicgen_core.training.checkpoint import Checkpoint, load_checkpoint
from musicgen_core.training.run_directory import RunDirectory
from musicgen_core.wording import named

logger = logging.getLogger(__name__)

_ALSO_FIXED = ("seed", "segment_seconds", "validation_fraction")  # beside every lora_ setting


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        checkpoint: what it goes on from; None for a new one.
        origin: the checkpoint that the user named last; None if none was.
        goes_back: whether that is now to be done: later files are to be set aside.
        resumed: the checkpoint's path, where the directory's own run is resumed.
    """

    checkpoint: Checkpoint | None
    origin: dict[str, str] | None = None
    goes_back: bool = False
    resumed: UPath | None = None


def find_start(files: RunDirectory, resume: str) -> Start:
    """What `--resume` (auto, never or a checkpoint's path) means for a run directory.

    A checkpoint of another run directory begins a new one: the directory must have no training in it, except one
    that began with the same checkpoint, which goes on. A checkpoint of the same directory is gone back to once: if
    that was the last one gone back to, the training goes on, so that the same command can be run again.

    Raises:
        RunDirectoryError: it can't be done; or the checkpoint can't be read.
    """
    config = files.read_config()
    origin = config.origin if config is not None else None
    if resume == "never":
        if files.has_training():
            raise RunDirectoryError(
                message("{root} has a training in it, and resume is never", root=files.root),
                message("Give another run directory, or --resume auto to go on with it"),
            )
        return Start(None)
    if resume != "auto":
        path = storage.as_path(resume)
        wanted = {"checkpoint": str(path)}
        is_origin = origin is not None and origin["checkpoint"] == wanted["checkpoint"]
        if not files.holds(path):
            if not files.has_training():
                return Start(load_checkpoint(path), wanted, goes_back=True)
            if not is_origin:
                raise RunDirectoryError(
                    message(
                        "{root} has a training of its own, and {path} is of another run directory",
                        root=files.root,
                        path=path,
                    ),
                    message("Give a run directory without a training, or a checkpoint of this one"),
                )
        elif not is_origin or not files.latest.exists():
            return Start(load_checkpoint(path), wanted, goes_back=True)
        logger.info("%s began with %s before: it goes on; to begin there again, move latest.pt away", files.root, path)
    found = files.find_checkpoint()
    if found is None:
        return Start(None)
    checkpoint, path = found
    if path != files.latest:
        logger.warning("%s can't be read; going on from %s", files.latest, path)
    return Start(checkpoint, origin, resumed=path)


def fixed_values(
    settings: TrainSettings, base_model: str, clips_per_step: int, shards: dict[str, str]
) -> dict[str, Any]:
    """What must stay the same while a training lasts: the model, the adapter's shape, and the order of the clips."""
    values = settings.model_dump(mode="json")
    fixed = {name: value for name, value in values.items() if name.startswith("lora_") or name in _ALSO_FIXED}
    if settings.prior_preservation:
        fixed["prior_preservation"] = settings.prior_preservation
    return {"base_model": base_model, **fixed, "clips_per_step": clips_per_step, SHARDS: shards}


def check_same(then: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare two results of `fixed_values`.

    Raises:
        RunDirectoryError: they differ; every difference is named.
    """
    different = []
    for name in dict.fromkeys([*then, *now]):
        before, after = (values.get(name, _default(name)) for values in (then, now))
        if name == SHARDS:
            different += _shards_differ(before or {}, after or {})
        elif _comparable(name, before) != _comparable(name, after):
            different.append(f"{name} is {before} there and {after} here")
    if different:
        raise RunDirectoryError(
            message("{where} is of another training: {names}", where=where, names="; ".join(different)),
            message(
                "Give another run directory (with --init-adapter to start from this one's best), or the same "
                "model, tokens and settings"
            ),
        )


def _default(name: str) -> Any:
    """What a setting was in a run that has noted nothing of it."""
    field = TrainSettings.model_fields.get(name)
    return None if field is None else field.default


def _comparable(name: str, value: Any) -> Any:
    """A model is the same under another name."""
    return value.rpartition("@")[2] if name == "base_model" and isinstance(value, str) else value


def _shards_differ(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    changed = [stem for stem in then.keys() & now.keys() if then[stem] != now[stem]]
    descriptions = [stem for stem in changed if then[stem].split()[0] == now[stem].split()[0]]
    kinds = {
        "were added": now.keys() - then.keys(),
        "are missing": then.keys() - now.keys(),
        "were tokenized again with other contents": set(changed) - set(descriptions),
        "have other descriptions": set(descriptions),
    }
    return [f"in the tokens, archives {kind}: {named(sorted(stems))}" for kind, stems in kinds.items() if stems]


def log_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Say which settings are others from here on; those given now count."""
    for name in TrainSettings.model_fields:
        if name in then and then[name] != now[name]:
            logger.info("%s was %s and is %s from here on", name, then[name], now[name])

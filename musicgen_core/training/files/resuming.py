"""Find what a run starts from: the checkpoint that it resumes from, with the same inputs, and earlier runs."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips, split
from musicgen_core.errors import RunDirectoryError
from musicgen_core.language import as_message, message
from musicgen_core.learning_settings import AdapterSettings
from musicgen_core.model.trained_model import with_tensors
from musicgen_core.run_layout import SHARDS, WEIGHT_FOLDERS, RunConfig, find_config
from musicgen_core.training.files.checkpoint import Checkpoint, load_checkpoint
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.wording import joined_sentences, named

logger = logging.getLogger(__name__)

_ALSO_FIXED = ("seed", "segment_seconds", "validation_fraction")  # beside every lora_ setting
_FIXED_IF_GIVEN = {"train": "lora", "layers": None, "ranks": None, "optimizer_name": "adamw", "prior_preservation": 0.0}
"""With the defaults, with which they aren't recorded, as in runs of earlier versions."""


@dataclass(frozen=True)
class StartPoint:
    """The start of a training run.

    Attributes:
        checkpoint: the checkpoint to resume from; None for a new run.
        origin: the checkpoint that the user named last, or None.
        goes_back: whether to go back to it now, setting later files aside.
        resumed: the checkpoint's path, if the directory's own run is resumed.
    """

    checkpoint: Checkpoint | None
    origin: dict[str, str] | None = None
    goes_back: bool = False
    resumed: UPath | None = None

    @property
    def step(self) -> int:
        """The step of the checkpoint; 0 for a new run."""
        return self.checkpoint.progress.step if self.checkpoint is not None else 0

    def without_tensors(self) -> StartPoint:
        """Return the same start once its state is restored, which then takes no memory."""
        if self.checkpoint is None:
            return self
        learned = with_tensors(self.checkpoint.learned, {})
        return replace(self, checkpoint=replace(self.checkpoint, learned=learned, optimizer={}, average=None))


def find_start(files: RunDirectory, resume: str) -> StartPoint:
    """Return the start of a run, from `--resume` (auto, never or a checkpoint's path) and the run directory.

    A checkpoint of another run directory starts a new run: the directory must be without a run, or with one that
    started from the same checkpoint, which is resumed. A run goes back to a checkpoint of its own directory only once:
    if it is the last one that the run went back to, the run is resumed, so that the same command can be repeated.

    Raises:
        RunDirectoryError: the directory holds another run, or the checkpoint can't be read.
    """
    config = files.read_config()
    origin = config.origin if config is not None else None
    if resume == "never":
        if files.has_training():
            raise RunDirectoryError(
                message("{root} holds a training run, and resume is never", root=files.root),
                message("Give another run directory, or --resume auto to resume this one"),
            )
        return StartPoint(None)
    if resume != "auto":
        path = storage.as_path(resume)
        wanted = {"checkpoint": str(path)}
        is_origin = origin is not None and origin["checkpoint"] == wanted["checkpoint"]
        if not files.holds(path):
            if not files.has_training():
                return StartPoint(load_checkpoint(path), wanted, goes_back=True)
            if not is_origin:
                raise RunDirectoryError(
                    message(
                        "{root} holds a training run of its own, and {path} is of another run directory",
                        root=files.root,
                        path=path,
                    ),
                    message("Give an empty run directory, or a checkpoint of this one"),
                )
        elif not is_origin or not files.latest.exists():
            return StartPoint(load_checkpoint(path), wanted, goes_back=True)
        logger.info(
            "%s began from %s before and is resumed; to restart from there, move latest.pt away", files.root, path
        )
    found = files.find_checkpoint()
    if found is None:
        return StartPoint(None)
    checkpoint, path = found
    if path != files.latest:
        logger.warning("%s can't be read; resuming from %s", files.latest, path)
    return StartPoint(checkpoint, origin, resumed=path)


def fixed_values(
    settings: TrainSettings, base_model: str, clips_per_step: int, shards: dict[str, str]
) -> dict[str, Any]:
    """Return the values that must not change during a run: model, shape of the adapter, and order of the clips."""
    values = recorded_settings(settings)
    fixed = {name: value for name, value in values.items() if name.startswith("lora_") or name in _ALSO_FIXED}
    fixed |= {name: values[name] for name, default in _FIXED_IF_GIVEN.items() if values.get(name, default) != default}
    return {"base_model": base_model, **fixed, "clips_per_step": clips_per_step, SHARDS: shards}


def recorded_settings(settings: TrainSettings) -> dict[str, Any]:
    """Return the settings as a run records them: without those of adapters where there is none."""
    without = {"lora_r", *AdapterSettings.model_fields} if settings.train == "all" else set()
    return settings.model_dump(mode="json", exclude=without)


def check_same(then: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Compare two results of `fixed_values`.

    Raises:
        RunDirectoryError: they differ; names every difference.
    """
    different: list[str] = []
    for name in dict.fromkeys([*then, *now]):
        default = getattr(TrainSettings.model_fields.get(name), "default", None)  # of a run that didn't record it
        before, after = then.get(name, default), now.get(name, default)
        if name == SHARDS:
            different += _shards_differ(before or {}, after or {})
        elif _comparable(name, before) != _comparable(name, after):
            text = message("{name} is {before} there and {after} here", name=name, before=before, after=after)
            different.append(text)
    if different:
        raise RunDirectoryError(
            message("{where} belongs to another run: {names}", where=where, names=joined_sentences(different)),
            message(
                "Give another run directory (with --init-adapter to start from this one's best), or the same "
                "model, tokens and settings"
            ),
        )


def _comparable(name: str, value: Any) -> Any:
    """Return a value without what may change: a model is the same under another name."""
    return value.rpartition("@")[2] if name == "base_model" and isinstance(value, str) else value


def _shards_differ(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    changed = [stem for stem in then.keys() & now.keys() if then[stem] != now[stem]]
    descriptions = [stem for stem in changed if _codes(then[stem]) == _codes(now[stem])]
    kinds = {
        message("in the tokens, archives were added: {names}"): now.keys() - then.keys(),
        message("in the tokens, archives are missing: {names}"): then.keys() - now.keys(),
        message("in the tokens, archives were tokenized again with other contents: {names}"): (
            set(changed) - set(descriptions)
        ),
        message("in the tokens, archives have other descriptions: {names}"): set(descriptions),
    }
    texts = ((kind, named(sorted(stems))) for kind, stems in kinds.items() if stems)
    return [as_message(kind.format(names=names), kind, {"names": names}) for kind, names in texts]


def log_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Log the settings that differ from the run so far; the new values apply from here on."""
    for name in TrainSettings.model_fields:
        if name in then and then[name] != now[name]:
            logger.info("%s was %s and is %s from here on", name, then[name], now[name])


@dataclass(frozen=True)
class Lineage:
    """The training runs that an adapter results from.

    Attributes:
        configs: their config.json, the newest first.
        unknown: an adapter or a checkpoint that one of them started from and whose run is not known, or None.
    """

    configs: list[RunConfig]
    unknown: str | None = None

    @property
    def fraction(self) -> float:
        """The fraction of clips that all of these runs held out."""
        return min(config.held_out_fraction or 0.0 for config in self.configs)


def lineage_of(config: RunConfig) -> Lineage:
    """Return the runs that a run was initialized from, by `init_adapter` or a checkpoint, down to the base model."""
    configs = [config]
    for known in configs:  # grows during the loop
        checkpoint = known.origin["checkpoint"] if known.origin is not None else ""
        for before in filter(None, (known.init_adapter, checkpoint)):
            found = _config_around(before)
            if found is None:
                return Lineage(configs, before)
            if found not in configs:
                configs.append(found)
    return Lineage(configs)


def learned_from(clips: Clips, configs: Iterable[RunConfig]) -> NDArray[np.bool_]:
    """Return for each clip whether any of the runs may have learned from it, [clips].

    Clips are identified by the names of archive and member. Where that isn't conclusive, as for an archive that was
    renamed since, the answer is true. If a run held out near duplicates together, it also learned from those of its
    clips. Which groups were joined is derived from the archives that are still there.
    """
    learned = np.zeros(len(clips), dtype=bool)
    for config in configs:
        learned |= _learned_in(clips, config)
    return learned


def _learned_in(clips: Clips, config: RunConfig) -> NDArray[np.bool_]:
    shards, fraction = config.shards, config.held_out_fraction or 0.0  # all of it learned where it is unknown
    lengths = [len(shard) for shard in clips.shards]
    if shards is None:  # written by an early version, which didn't record them
        shards = clips.fingerprints
    contents = Counter(map(_codes, shards.values()))
    is_own = [stem in shards for stem in clips.fingerprints]
    # Under another name the clips have other hashes: those held out of one archive were trained on with the other.
    is_renamed = [contents[_codes(content)] > (stem in shards) for stem, content in clips.fingerprints.items()]
    own = np.repeat(is_own, lengths).nonzero()[0]
    learned = np.repeat(is_renamed, lengths)
    keys = clips.split_keys(config.split_by, own)
    if shards.keys() <= clips.fingerprints.keys():
        training, _ = split(keys, fraction)
    else:  # `split` keeps both sides non-empty over all archives, not over these
        training = (keys.astype(np.float64) / 2.0**64 >= fraction).nonzero()[0]
    learned[own[training]] = True
    if config.split_by in ("any_level", "near_duplicates"):
        learned = np.isin(clips.near_duplicates, clips.near_duplicates[learned])
    return learned


def _codes(content: str) -> str:
    """Return the part of a shard's fingerprint that doesn't depend on descriptions."""
    return content.split()[0]


def _config_around(location: str) -> RunConfig | None:
    """Return the config.json of the run directory that `location` names or is in; None if no training run wrote it."""
    path = storage.as_path(location)
    if path.suffix == ".pt":
        path = path.parent.parent if path.parent.name in WEIGHT_FOLDERS else path.parent
    found = find_config(path)
    return found if found is not None and found.is_training else None

"""Which clips an adapter has learned from: in its own training, and in those that it began from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.dataset import Clips, split
from musicgen_core.training.resuming import HELD_OUT, SHARDS
from musicgen_core.training.run_directory import FOLDERS


@dataclass(frozen=True)
class Lineage:
    """The training runs of an adapter.

    Attributes:
        configs: their config.json, the newest first.
        unknown: an adapter or a checkpoint that one of them began from, and whose training is not known; None: none.
    """

    configs: list[Mapping[str, Any]]
    unknown: str | None = None

    @property
    def fraction(self) -> float:
        """The share of clips that every one of them held out."""
        return min(map(_fraction, self.configs))


def lineage_of(config: Mapping[str, Any]) -> Lineage:
    """Follow what a training began from, `init_adapter` or another run's checkpoint, to the base model."""
    configs = [config]
    for known in configs:  # grows meanwhile
        origin = known.get("origin")
        checkpoint = origin.get("checkpoint") if isinstance(origin, dict) else None
        for before in filter(None, (known.get("init_adapter"), checkpoint)):
            found = _config_around(str(before))
            if found is None:
                return Lineage(configs, str(before))
            if found not in configs:
                configs.append(found)
    return Lineage(configs)


def learned_from(clips: Clips, configs: Iterable[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Return for each clip whether any of the runs may have learned from it, [clips].

    A clip is known by its archive's name and its own. Where that is not enough, as for an archive that was renamed
    since, the answer is yes.
    """
    learned = np.zeros(len(clips), dtype=bool)
    for config in configs:
        learned |= _learned_in(clips, config)
    return learned


def _learned_in(clips: Clips, config: Mapping[str, Any]) -> NDArray[np.bool_]:
    shards, fraction = config.get(SHARDS), _fraction(config)
    lengths = [len(shard) for shard in clips.shards]
    if not isinstance(shards, dict):  # of an early version, which did not note them
        shards = clips.fingerprints
    contents = Counter(map(_codes, shards.values()))
    is_own = [stem in shards for stem in clips.fingerprints]
    # Under another name its clips have other hashes, so that what was held out of the one was learned with the other.
    is_renamed = [contents[_codes(content)] > (stem in shards) for stem, content in clips.fingerprints.items()]
    own = np.repeat(is_own, lengths).nonzero()[0]
    learned = np.repeat(is_renamed, lengths)
    hashes = clips.hashes[own]
    if shards.keys() <= clips.fingerprints.keys():
        training, _ = split(hashes, fraction)
    else:  # the clips that `split` moves to keep both sides filled are those of all archives
        training = (hashes.astype(np.float64) / 2.0**64 >= fraction).nonzero()[0]
    learned[own[training]] = True
    return learned


def _fraction(config: Mapping[str, Any]) -> float:
    """The share of clips that a run held out; none where its config.json is damaged, so that all count as learned."""
    value = config.get(HELD_OUT, config.get("validation_fraction"))
    return value if isinstance(value, int | float) and 0 <= value < 1 else 0.0


def _codes(content: str) -> str:
    """The part of a shard's fingerprint that descriptions don't change."""
    return content.split()[0]


def _config_around(location: str) -> Mapping[str, Any] | None:
    """The config.json of the run directory that `location` names or lies in."""
    path = storage.as_path(location)
    if path.suffix != ".pt":
        return read_config(path)
    return read_config(path.parent.parent if path.parent.name in FOLDERS else path.parent)


def read_config(run_dir: UPath) -> Mapping[str, Any] | None:
    """A run's config.json, if it is there and one."""
    try:
        config = json.loads(storage.read_text(run_dir / "config.json"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and "lora_r" in config else None

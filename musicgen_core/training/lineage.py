"""Which clips an adapter has learned from: in its own training, and in those that it began from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from musicgen_core import storage
from musicgen_core.data.dataset import Clips, split
from musicgen_core.run_layout import WEIGHT_FOLDERS, RunConfig, find_config


@dataclass(frozen=True)
class Lineage:
    """The training runs of an adapter.

    Attributes:
        configs: their config.json, the newest first.
        unknown: an adapter or a checkpoint that one of them began from, and whose training is not known; None: none.
    """

    configs: list[RunConfig]
    unknown: str | None = None

    @property
    def fraction(self) -> float:
        """The share of clips that every one of them held out."""
        return min(config.held_out_fraction or 0.0 for config in self.configs)


def lineage_of(config: RunConfig) -> Lineage:
    """Follow what a training began from, `init_adapter` or another run's checkpoint, to the base model."""
    configs = [config]
    for known in configs:  # grows meanwhile
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

    A clip is known by its archive's name and its own. Where that is not enough, as for an archive that was renamed
    since, the answer is yes.
    """
    learned = np.zeros(len(clips), dtype=bool)
    for config in configs:
        learned |= _learned_in(clips, config)
    return learned


def _learned_in(clips: Clips, config: RunConfig) -> NDArray[np.bool_]:
    shards, fraction = config.shards, config.held_out_fraction or 0.0  # all of it learned where it is unknown
    lengths = [len(shard) for shard in clips.shards]
    if shards is None:  # of an early version, which did not note them
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


def _codes(content: str) -> str:
    """The part of a shard's fingerprint that descriptions don't change."""
    return content.split()[0]


def _config_around(location: str) -> RunConfig | None:
    """Return the config.json of the run directory that `location` names or is in; None if no training run wrote it."""
    path = storage.as_path(location)
    if path.suffix == ".pt":
        path = path.parent.parent if path.parent.name in WEIGHT_FOLDERS else path.parent
    found = find_config(path)
    return found if found is not None and found.is_training else None

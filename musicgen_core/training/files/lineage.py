"""The clips that an adapter was trained on, in its own run and in those that it was initialized from."""

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
    renamed since, the answer is true.
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
    hashes = clips.hashes[own]
    if shards.keys() <= clips.fingerprints.keys():
        training, _ = split(hashes, fraction)
    else:  # `split` keeps both sides non-empty over all archives, not over these
        training = (hashes.astype(np.float64) / 2.0**64 >= fraction).nonzero()[0]
    learned[own[training]] = True
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

"""Several adapters of one base model with their strengths: their files, their check, and one adapter in their place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import AdapterError
from musicgen_core.language import message
from musicgen_core.model.adapters import (
    Adapter,
    AdapterConfig,
    are_of_different_bases,
    displayed_path,
    find_adapter,
    hub_id,
)
from musicgen_core.model.merging import LayerUpdate, updates_of
from musicgen_core.model.trained_model import Learned, TrainedModel, load_learned
from musicgen_core.model.weighted_adapters import Mix, WeightedAdapter, with_effect

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter with its origin.

    Attributes:
        source: the location that the user gave.
        path: the file of its weights.
        sha256: hash of the file.
    """

    source: str
    path: UPath
    adapter: Learned
    sha256: str

    def described(self, strength: float) -> dict[str, Any]:
        """Return its entry in sidecars."""
        return {
            "path": displayed_path(self.path),
            "sha256": self.sha256,
            "epoch": self.adapter.epoch,
            "global_step": self.adapter.global_step,
            "strength": strength,
        }


def load_mix(adapters: Iterable[WeightedAdapter]) -> list[LoadedAdapter]:
    """Load each adapter once, whatever its strength, in the order of their hashes.

    Their changes are added in this order, so the sum doesn't depend on the order in which they are given.

    Raises:
        AdapterError: there is no adapter at a location, or two of them are of different base models.
    """
    loaded = []
    for source in dict.fromkeys(one.source for one in adapters):
        path = find_adapter(source)
        loaded.append(LoadedAdapter(source, path, load_learned(path), storage.content_sha256(path)))
    for one, other in combinations(loaded, 2):
        if are_of_different_bases(one.adapter.base_model, other.adapter.base_model):
            raise AdapterError(
                message(
                    "the adapters {one} and {other} can't be mixed: they were trained on {model} and {other_model}",
                    one=one.path,
                    other=other.path,
                    model=one.adapter.base_model,
                    other_model=other.adapter.base_model,
                ),
                message("Give adapters of one base model"),
            )
    return sorted(loaded, key=lambda one: (one.sha256, one.source))


def load_with_effect(given: Iterable[WeightedAdapter]) -> tuple[Mix, list[LoadedAdapter]]:
    """Return those of the adapters whose strength isn't 0, and load them.

    Raises:
        AdapterError: see `load_mix`; or all strengths are 0.
    """
    mix = with_effect(given)
    if not mix:
        raise AdapterError(
            message("no adapter has an effect: strength 0 is the base model"),
            message("Give an adapter with another strength"),
        )
    return mix, load_mix(mix)


def strengths_of(mix: Sequence[WeightedAdapter], loaded: Sequence[LoadedAdapter]) -> list[float]:
    """Return the strength of each loaded adapter in a mix: 0 if it isn't in it, the sum if it is repeated."""
    return [sum(one.strength for one in mix if one.source == each.source) for each in loaded]


def identity_of(mix: Sequence[WeightedAdapter], loaded: Sequence[LoadedAdapter]) -> str:
    """Return a text that is the same for the same sum: the hash of a single adapter, or hashes with strengths."""
    strengths = strengths_of(mix, loaded)
    if strengths == [1]:
        return loaded[0].sha256
    return " ".join(f"{one.sha256}:{strength}" for one, strength in zip(loaded, strengths, strict=True))


def base_model_of_all(loaded: Sequence[LoadedAdapter]) -> str:
    """Return the base model that the adapters record, by its id on the Hub if one of them does."""
    recorded = [one.adapter.base_model for one in loaded if one.adapter.base_model]
    return next((base_model for base_model in recorded if hub_id(base_model)), recorded[0] if recorded else "")


def concatenated(parts: Sequence[tuple[Learned, float]]) -> Adapter:
    """Return one LoRA adapter that changes the base model as several do together.

    The matrices of each layer are stacked: its rank is the sum of theirs. Strengths and scales are multiplied into
    lora_B, so that the adapter's own scale is 1. Layers of a smaller rank are padded with zeros. Like an adapter of
    another program, it has no step and no loss; it names no base model.

    Args:
        parts: adapters with strengths, of one base model.

    Raises:
        AdapterError: one of them is DoRA, or a model that was trained whole: their changes have no low rank.
    """
    adapters = [(only_adapter(learned), strength) for learned, strength in parts]
    layers: dict[str, list[tuple[LayerUpdate, float]]] = {}
    for adapter, strength in adapters:
        for layer, update in updates_of(adapter).items():
            if update.magnitude is not None:
                raise AdapterError(
                    message("adapters with DoRA can't be written as one adapter with strengths"),
                    message("Export them merged into the base model: --format audiocraft or huggingface"),
                )
            layers.setdefault(layer, []).append((update, strength))
    rank = max(sum(len(update.down) for update, _ in found) for found in layers.values())
    lora: dict[str, Tensor] = {}
    for layer, found in layers.items():
        down = torch.cat([update.down.float() for update, _ in found])  # [r, in]
        up = torch.cat([update.up.float() * (update.scale * strength) for update, strength in found], dim=1)  # [out, r]
        missing = rank - len(down)
        lora[f"{_PREFIX}{layer}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, missing))
        lora[f"{_PREFIX}{layer}.lora_B.weight"] = torch.nn.functional.pad(up, (0, missing))
    blocks, targets = _blocks_and_targets([AdapterConfig.from_plain(adapter.config) for adapter, _ in adapters], layers)
    return Adapter(
        lora=lora,
        config=AdapterConfig(r=rank, alpha=rank, targets=targets, layers=blocks).plain(),
        epoch=0,
        global_step=0,
        loss=float("nan"),
        base_model="",
    )


def only_adapter(learned: Learned) -> Adapter:
    """Return an adapter as it is.

    Raises:
        AdapterError: it is a model that was trained whole.
    """
    if isinstance(learned, TrainedModel):
        raise AdapterError(
            message("there is no adapter: all weights of the model were trained (train all)"),
            message("Export the model: --format audiocraft or huggingface"),
        )
    return learned


def _blocks_and_targets(
    configs: Sequence[AdapterConfig], layers: Collection[str]
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Return the adapted blocks (None: all) and the targets that select the layers: the adapters' own if they agree."""
    own = {(config.layers, tuple(sorted(set(config.targets)))) for config in configs}
    if len(own) == 1:
        return own.pop()
    by_block: dict[int, set[str]] = {}
    for layer in layers:
        block, name = layer.split(".", 4)[3:]
        by_block.setdefault(int(block), set()).add(name)
    first = next(iter(by_block.values()))
    if all(names == first for names in by_block.values()):
        return tuple(sorted(by_block)), tuple(sorted(first))
    return None, tuple(sorted(layers))

"""The sum of a layer's base weight and of strength × change of each adapter.

The change of an adapter is what merging it alone does: B A · scale for LoRA (Hu et al. 2021, equation 3), and the
difference of merged and base weight for DoRA (Liu et al. 2024, equation 5), whose norm makes it depend on the base.
Changes are computed in fp32, or fp64 for a model in fp64; the sum is rounded once, to the precision of the base.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.trained_model import Learned, TrainedModel

_TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.(?P<kind>lora_[AB]|lora_magnitude_vector)(?:\.weight)?")


@dataclass(frozen=True)
class LayerUpdate:
    """One adapter's tensors for one linear layer.

    Attributes:
        down: lora_A, [r, in].
        up: lora_B, [out, r].
        scale: factor of the product of both.
        magnitude: [out] for DoRA, else None.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None = None

    def to(self, device: torch.device | str, dtype: torch.dtype) -> LayerUpdate:
        magnitude = None if self.magnitude is None else self.magnitude.to(device, dtype)
        return LayerUpdate(self.down.to(device, dtype), self.up.to(device, dtype), self.scale, magnitude)

    def merged(self, weight: Tensor) -> Tensor:
        """Return the weight [out, in] with the adapter at strength 1, bit for bit as peft merges it."""
        total = weight + self.up @ self.down * self.scale
        if self.magnitude is not None:
            total = (self.magnitude / torch.linalg.norm(total, dim=1)).view(-1, 1) * total
        return total.to(weight.dtype)

    def change(self, weight: Tensor) -> Tensor:
        """Return the difference of merged and base weight [out, in], in the adapter's precision."""
        if self.magnitude is None:
            return self.up @ self.down * self.scale
        wide = weight.to(self.up.dtype)
        return self.merged(wide) - wide


@dataclass(frozen=True)
class WholeWeight:
    """A weight of a model that was trained whole; its change is the difference to the base's."""

    trained: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype) -> WholeWeight:
        """Return this: a copy of all weights of a model on the device would double its memory."""
        return self

    def merged(self, weight: Tensor) -> Tensor:
        return self.trained.to(weight)

    def change(self, weight: Tensor) -> Tensor:
        dtype = update_dtype(weight.dtype)
        return self.trained.to(weight.device, dtype) - weight.to(dtype)


Update = LayerUpdate | WholeWeight


def weight_updates(learned: Learned) -> dict[str, Update]:
    """Return the updates of an adapter or of a model that was trained whole, by the names of the weights."""
    if isinstance(learned, TrainedModel):
        return {name: WholeWeight(weight) for name, weight in learned.weights.items()}
    return {f"{layer}.weight": update for layer, update in updates_of(learned).items()}


def updates_of(adapter: Adapter) -> dict[str, LayerUpdate]:
    """Return an adapter's updates by the names of the layers, such as `model.decoder.layers.0.fc1`.

    The tensors are on the CPU, in the precision of the file.
    """
    config = AdapterConfig.from_plain(adapter.config)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.lora.items():
        if (match := _TENSOR.fullmatch(name)) is not None:
            layers.setdefault(match["layer"], {})[match["kind"]] = tensor
    return {
        layer: LayerUpdate(
            down=tensors["lora_A"],
            up=tensors["lora_B"],
            scale=config.scale(len(tensors["lora_A"])),
            magnitude=tensors.get("lora_magnitude_vector"),
        )
        for layer, tensors in layers.items()
    }


def merged_weight(weight: Tensor, updates: Sequence[tuple[Update, float]]) -> Tensor:
    """Return the base weight [out, in] plus the sum of strength × change, in the base's precision.

    Args:
        weight: the base weight.
        updates: updates with their strengths, on the weight's device, in `update_dtype`. Their changes are added in
            this order.
    """
    if not updates:
        return weight
    (first, strength), *others = updates
    if not others and strength == 1:
        return first.merged(weight)
    total = first.change(weight).mul_(strength)
    for update, strength in others:
        total += update.change(weight).mul_(strength)
    return (weight + total).to(weight.dtype)


def update_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which changes of weights in a precision are computed."""
    return torch.promote_types(dtype, torch.float32)

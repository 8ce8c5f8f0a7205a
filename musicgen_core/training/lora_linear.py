"""Linear layers with LoRA as plain operations, for any device and precision.

Layers that read the same activations (q, k and v) are one product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen_core.training import dropout


class LinearWeights(NamedTuple):
    """One or several of peft's linear layers over the same input.

    Attributes:
        weight: [out, in], the frozen weights one below the other.
        a, b: the adapters' parameters, [r, in] and [part of out, r] each.
        scale: of the update, alpha / r.
        bases: the layers' own weights, views of `weight`.
    """

    weight: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    scale: float
    bases: tuple[Tensor, ...]


def pack_linears(layers: Sequence[Any]) -> LinearWeights:
    """The frozen weights move into one tensor, of which the layers' own become views."""
    bases = tuple(layer.base_layer.weight for layer in layers)
    weight = torch.cat([base.data for base in bases]) if len(bases) > 1 else bases[0].data
    for base, part in zip(bases, weight.split([len(base) for base in bases]), strict=True):
        base.data = part
    a, b = zip(*map(adapter, layers), strict=True)
    return LinearWeights(weight, a, b, layers[0].scaling["default"], bases)


def adapter(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """a and b of one of peft's linear layers."""
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def lora_linear(x: Tensor, keys: Tensor, w: LinearWeights, p: float) -> Tensor:
    """x [rows, in] → [rows, out]; keys [rows] of LoRA's dropout with probability p."""
    dropped = dropout.drop(x, keys, p)
    down = F.linear(dropped, torch.cat(w.a).to(x.dtype)).split([len(a) for a in w.a], dim=1)
    updates = [F.linear(h, b.to(x.dtype)) for h, b in zip(down, w.b, strict=True)]
    return x @ w.weight.t() + torch.cat(updates, dim=1) * w.scale

"""Linear layers with LoRA as plain operations, for any device and precision.

Layers that read the same activations (q, k and v) are packed into one GEMM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from musicgen_core.training.compute import dropout


class LinearWeights(NamedTuple):
    """The weights of one or several of peft's linear layers over the same input.

    Attributes:
        weight: [out, in], the frozen weights, concatenated along the outputs.
        a: the adapters' down-projections, [r, in] each.
        b: the adapters' up-projections, [out / number of layers, r] each.
        scale: the factor of the update, alpha / r.
        bases: the layers' own frozen weights, views of `weight`.
    """

    weight: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    scale: float
    bases: tuple[Tensor, ...]


def pack_linears(layers: Sequence[Any]) -> LinearWeights:
    """Pack linear layers over the same input: their frozen weights move into one tensor and become views of it."""
    bases = tuple(layer.base_layer.weight for layer in layers)
    weight = torch.cat([base.data for base in bases]) if len(bases) > 1 else bases[0].data
    for base, part in zip(bases, weight.split([len(base) for base in bases]), strict=True):
        base.data = part
    a, b = zip(*map(lora_matrices, layers), strict=True)
    return LinearWeights(weight, a, b, layers[0].scaling["default"], bases)


def lora_matrices(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A [r, in] and B [out, r] of one of peft's linear layers."""
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def lora_linear(x: Tensor, dropout_seeds: Tensor, w: LinearWeights, p: float) -> Tensor:
    """Return the output [rows, out] of linear layers with LoRA.

    Args:
        x: [rows, in].
        dropout_seeds: [rows], int32, one seed per row of x.
        w: the packed layers.
        p: probability of LoRA's dropout.
    """
    dropped = dropout.drop(x, dropout_seeds, p)
    down = F.linear(dropped, torch.cat(w.a).to(x.dtype)).split([len(a) for a in w.a], dim=1)
    updates = [F.linear(h, b.to(x.dtype)) for h, b in zip(down, w.b, strict=True)]
    return x @ w.weight.t() + torch.cat(updates, dim=1) * w.scale

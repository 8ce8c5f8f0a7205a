"""The decoder's blocks as training computes them: whole sequences, packed projections, LoRA inside the GEMMs.

The arithmetic is that of `model.decoder` with peft's adapter on it; a test compares both. Blocks are functions of plain
tuples of tensors rather than modules, so that all of them share one compilation. Linear layers that read the same
activations (q, k and v) are packed into one GEMM.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicgen_core.model.decoder import DecoderLayer
from musicgen_core.training.compute import dropout

STREAMS = 6
"""Inputs of a block's linear layers that dropout applies to, with a row per step; one more has a row per text token."""
_STREAMS = {
    "self_attn.q_proj": 0,
    "self_attn.k_proj": 0,
    "self_attn.v_proj": 0,
    "self_attn.out_proj": 1,
    "encoder_attn.q_proj": 2,
    "encoder_attn.out_proj": 3,
    "fc1": 4,
    "fc2": 5,
}
"""The index in `Inputs.dropout_seeds` of each layer's dropout, as in `block`."""
_TEXT_LAYERS = ("encoder_attn.k_proj", "encoder_attn.v_proj")
_LINEARS = (*_STREAMS, *_TEXT_LAYERS)


@dataclass(frozen=True)
class Inputs:
    """The inputs that all blocks share, beside the activations.

    Attributes:
        text: [B · L, D], projected text states, zero at padding.
        attend: [B, 1, 1, L], True where cross-attention may attend.
        dropout_seeds: [layers, STREAMS, B · S], int32, one seed per row of activations.
        text_dropout_seeds: [layers, B · L], int32, one seed per row of text states.
        p: probability of LoRA's dropout.
    """

    text: Tensor
    attend: Tensor
    dropout_seeds: Tensor
    text_dropout_seeds: Tensor
    p: float


class Blocks:
    """All blocks of the decoder with peft's adapter on them: `PlainBlocks`, `FusedBlocks` or `PeftBlocks`."""

    def refresh(self) -> None:
        """Update what the blocks hold of the adapter's parameters; by default they read them where they are."""

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        """Return the last block's output [B, S, D] from x [B, S, D]."""
        raise NotImplementedError

    def differentiable(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Return the output [B, S, D], and a function that takes a loss of it and adds the adapters' gradients."""
        return self.forward(x, inputs, checkpointing), torch.Tensor.backward  # by autograd


class LoraLinear(Protocol):
    """One of peft's linear layers with LoRA on it; the only adapter in its mappings is called `default`."""

    base_layer: nn.Linear
    lora_A: Mapping[str, nn.Linear]
    lora_B: Mapping[str, nn.Linear]
    lora_dropout: MutableMapping[str, nn.Module]
    lora_variant: Mapping[str, object]
    scaling: Mapping[str, float]


class LinearWeights(NamedTuple):
    """The weights of one or several of peft's linear layers over the same input.

    Attributes:
        weight: [out, in], the frozen weights, concatenated along the outputs.
        a: the adapters' down-projections, [r, in] each; none where the layers have no adapter.
        b: the adapters' up-projections, [out / number of layers, r] each.
        scale: the factor of the update, alpha / r.
        bases: the layers' own frozen weights, views of `weight`.
    """

    weight: Tensor
    a: tuple[Tensor, ...]
    b: tuple[Tensor, ...]
    scale: float
    bases: tuple[Tensor, ...]


class BlockWeights(NamedTuple):
    """The packed weights of a block; `norms` holds weight and bias [D] of its layer norms, in the order of their use.

    A block without cross-attention has no `text_q`, `text_kv` and `text_out`, and one norm less.
    """

    norms: tuple[tuple[Tensor, Tensor], ...]
    qkv: LinearWeights
    out: LinearWeights
    fc1: LinearWeights
    fc2: LinearWeights
    text_q: LinearWeights | None = None
    text_kv: LinearWeights | None = None
    text_out: LinearWeights | None = None

    def linears(self) -> dict[str, LinearWeights]:
        return {name: one for name in _PACKED if (one := getattr(self, name)) is not None}


_PACKED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.out_proj",),
    "text_q": ("encoder_attn.q_proj",),
    "text_kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "text_out": ("encoder_attn.out_proj",),
    "fc1": ("fc1",),
    "fc2": ("fc2",),
}
"""The linear layers in each part of `BlockWeights`, in the order of their adapters in memory."""


def pack(layer: DecoderLayer) -> BlockWeights:
    """Return the packed weights of a `DecoderLayer` with peft's adapter on it."""
    cross = [layer.encoder_attn_layer_norm] if layer.has_cross_attention else []
    norms = [layer.self_attn_layer_norm, *cross, layer.final_layer_norm]
    packed = {name: pack_linears(linears) for name, linears in _grouped(layer).items()}
    return BlockWeights(tuple((norm.weight, norm.bias) for norm in norms), **packed)


def adapter_parameters(layer: DecoderLayer) -> list[nn.Parameter]:
    """Return the adapter's parameters in the order of `linears`: for each packed layer all A, then all B."""
    if not is_adapted(layer):
        return []
    pairs = [[lora_matrices(linear) for linear in linears] for linears in _grouped(layer).values()]
    return [parameter for linears in pairs for side in zip(*linears, strict=True) for parameter in side]


def linears_of(layer: DecoderLayer) -> dict[str, nn.Module]:
    """Return a block's linear layers by their names."""
    names = _LINEARS if layer.has_cross_attention else [one for one in _LINEARS if not one.startswith("encoder_attn.")]
    return {name: layer.get_submodule(name) for name in names}


def _grouped(layer: DecoderLayer) -> dict[str, tuple[LoraLinear, ...]]:
    """Return the linear layers of a `DecoderLayer`, grouped by the input that they read."""
    linears = cast("dict[str, LoraLinear]", linears_of(layer))  # peft has replaced them
    groups = {name: tuple(linears[one] for one in parts if one in linears) for name, parts in _PACKED.items()}
    return {name: group for name, group in groups.items() if group}


def pack_linears(layers: Sequence[LoraLinear | nn.Linear]) -> LinearWeights:
    """Pack linear layers over the same input: their frozen weights move into one tensor and become views of it."""
    adapted = [layer for layer in layers if not isinstance(layer, nn.Linear)]
    bases = tuple(layer.weight if isinstance(layer, nn.Linear) else layer.base_layer.weight for layer in layers)
    weight = torch.cat([base.data for base in bases]) if len(bases) > 1 else bases[0].data
    for base, part in zip(bases, weight.split([len(base) for base in bases]), strict=True):
        base.data = part
    if not adapted:
        return LinearWeights(weight, (), (), 0.0, bases)
    a, b = zip(*map(lora_matrices, adapted), strict=True)
    return LinearWeights(weight, a, b, adapted[0].scaling["default"], bases)


def lora_matrices(layer: LoraLinear) -> tuple[nn.Parameter, nn.Parameter]:
    """Return A [r, in] and B [out, r] of one of peft's linear layers."""
    return cast("tuple[nn.Parameter, nn.Parameter]", (layer.lora_A["default"].weight, layer.lora_B["default"].weight))


def lora_linear(x: Tensor, dropout_seeds: Tensor, w: LinearWeights, p: float) -> Tensor:
    """Return the output [rows, out] of linear layers with LoRA.

    Args:
        x: [rows, in].
        dropout_seeds: [rows], int32, one seed per row of x.
        p: probability of LoRA's dropout.
    """
    if not w.a:
        return x @ w.weight.t()
    dropped = dropout.drop(x, dropout_seeds, p)
    down = F.linear(dropped, torch.cat(w.a).to(x.dtype)).split([len(a) for a in w.a], dim=1)
    updates = [F.linear(h, b.to(x.dtype)) for h, b in zip(down, w.b, strict=True)]
    return x @ w.weight.t() + torch.cat(updates, dim=1) * w.scale


def block(
    x: Tensor,
    text: Tensor,
    attend: Tensor,
    dropout_seeds: Tensor,
    text_dropout_seeds: Tensor,
    w: BlockWeights,
    heads: int,
    p: float,
) -> Tensor:
    """Return the output of one block.

    Args:
        x: [B, S, D].
        text: [B · L, D].
        attend: [B, 1, 1, L].
        dropout_seeds: [STREAMS, B · S].
        text_dropout_seeds: [B · L].
        heads: D / heads is the width of one.
        p: probability of LoRA's dropout.

    Returns:
        [B, S, D].
    """
    batch = len(x)
    rows = x.flatten(0, 1)  # [B · S, D]
    y = _norm(rows, w.norms[0])
    attended = self_attention(*split_heads(lora_linear(y, dropout_seeds[0], w.qkv, p), batch, 3, heads))
    rows = rows + lora_linear(attended, dropout_seeds[1], w.out, p)

    if w.text_q is not None and w.text_kv is not None and w.text_out is not None:
        q = lora_linear(_norm(rows, w.norms[1]), dropout_seeds[2], w.text_q, p)
        kv = lora_linear(text, text_dropout_seeds, w.text_kv, p)
        rows = rows + lora_linear(cross_attention(q, kv, attend, batch, heads), dropout_seeds[3], w.text_out, p)

    y = F.gelu(lora_linear(_norm(rows, w.norms[-1]), dropout_seeds[4], w.fc1, p))
    return (rows + lora_linear(y, dropout_seeds[5], w.fc2, p)).view_as(x)


class PlainBlocks(Blocks):
    """All blocks, for any device and precision; autograd computes their gradients."""

    def __init__(self, layers: Sequence[DecoderLayer], heads: int, compiled: bool) -> None:
        self._first = first_adapted(layers)
        self._weights = [pack(layer) for layer in layers]
        self._heads = heads
        self._block: Callable[..., Tensor] = torch.compile(block, dynamic=False) if compiled else block

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        differentiates = torch.is_grad_enabled()
        all_weights = zip(self._weights, inputs.dropout_seeds, inputs.text_dropout_seeds, strict=True)
        for index, (w, seeds, text_seeds) in enumerate(all_weights):
            if differentiates and index == self._first:
                x.requires_grad_()  # else the first block would be compiled separately
            arguments = (x, inputs.text, inputs.attend, seeds, text_seeds, w, self._heads, inputs.p)
            # No gradient is needed below the first adapter.
            with torch.set_grad_enabled(differentiates and index >= self._first):
                if checkpointing and torch.is_grad_enabled():
                    x = checkpoint(self._block, *arguments, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = self._block(*arguments)
        return x


def can_pack(layers: Sequence[DecoderLayer]) -> bool:
    """Return whether each block has plain LoRA on all of its linear layers or on none.

    The packed and fused blocks require that.
    """
    of_blocks = [list(linears_of(layer).values()) for layer in layers]
    whole = (all(_is_adapted(one) and not one.lora_variant for one in linears) for linears in of_blocks)
    return all(
        is_whole or not any(map(_is_adapted, linears)) for is_whole, linears in zip(whole, of_blocks, strict=True)
    )


def is_adapted(layer: DecoderLayer) -> bool:
    """Return whether all linear layers of a block have an adapter."""
    return all(map(_is_adapted, linears_of(layer).values()))


def first_adapted(layers: Sequence[DecoderLayer]) -> int:
    """Return the index of the first block with an adapter; the blocks before it need no backward pass."""
    return next(index for index, layer in enumerate(layers) if is_adapted(layer))


class PeftBlocks(Blocks):
    """All blocks as peft itself runs them: slower, but whatever peft computes is trained.

    For DoRA, and for adapters on only some of the linear layers.
    """

    def __init__(self, layers: Sequence[DecoderLayer]) -> None:
        self._layers = layers
        self._dropouts = [{name: _ClipDropout() for name in linears_of(layer)} for layer in layers]
        for layer, dropouts in zip(layers, self._dropouts, strict=True):
            for name, own in dropouts.items():
                linear = layer.get_submodule(name)
                if _is_adapted(linear):
                    linear.lora_dropout["default"] = own

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        text = inputs.text.view(len(x), -1, x.shape[-1])
        half = x.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(x.device.type, x.dtype if half else None, enabled=half):  # the adapter is in fp32
            for index, layer in enumerate(self._layers):
                self._set_dropout(index, inputs)
                if checkpointing and torch.is_grad_enabled():
                    arguments = (layer, x, text, inputs.attend)
                    x = checkpoint(*arguments, use_reentrant=False, preserve_rng_state=False)
                else:
                    x = layer(x, text, inputs.attend)
        return x

    def _set_dropout(self, index: int, inputs: Inputs) -> None:
        """Set the seeds of a block's dropout until the next forward pass; recomputed activations get the same masks."""
        for name, own in self._dropouts[index].items():
            own.dropout_seeds = (
                inputs.dropout_seeds[index, _STREAMS[name]] if name in _STREAMS else inputs.text_dropout_seeds[index]
            )
            own.p = inputs.p
        self._layers[index].train(inputs.p > 0)  # read by dropout and by peft's DoRA


class _ClipDropout(nn.Module):
    """Replaces peft's dropout by a function of the clips' seeds, as in the other blocks."""

    dropout_seeds: Tensor
    p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Return dropout of x [B, S or L, D], which has as many rows as there are seeds."""
        return x if not self.training else dropout.drop(x.flatten(0, 1), self.dropout_seeds, self.p).view_as(x)


def _is_adapted(linear: nn.Module) -> TypeGuard[LoraLinear]:
    return hasattr(linear, "lora_A")


def self_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return causal self-attention [B · S, D] of q, k and v, [B, H, S, D/H] each."""
    return _joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def cross_attention(q: Tensor, kv: Tensor, attend: Tensor, batch: int, heads: int) -> Tensor:
    """Return attention [B · S, D] of q [B · S, D] to the keys and values kv [B · L, 2 D], where attend [B, 1, 1, L].

    The scores are materialized: a text is short, and no fused attention is as fast with a mask.
    """
    (q,), (k, v) = split_heads(q, batch, 1, heads), split_heads(kv, batch, 2, heads)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    return _joined(scores.masked_fill(~attend, float("-inf")).softmax(dim=-1).to(v.dtype) @ v)


def _norm(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *weights)


def split_heads(x: Tensor, batch: int, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Split x [B · S, parts · D] into `parts` tensors [B, H, S, D/H]."""
    return x.view(batch, -1, parts, heads, x.shape[1] // (parts * heads)).permute(2, 0, 3, 1, 4).unbind()


def _joined(heads: Tensor) -> Tensor:
    """Merge heads [B, H, S, D/H] into [B · S, D]."""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)

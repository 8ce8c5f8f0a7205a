"""The decoder's blocks as training computes them: whole sequences, packed projections, LoRA inside the products.

The arithmetic is that of `model.decoder` with peft's adapter on it; a test compares both. Functions over plain tuples
of tensors rather than modules, so that all blocks share one compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

from musicgen_core.training.lora_linear import LinearWeights, adapter, lora_linear, pack_linears

ATTENTION = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""Fastest first, on an H200."""
STREAMS = 6
"""Places of a block that drop out rows of a clip; one more drops out rows of its text."""


@dataclass(frozen=True)
class Inputs:
    """What the blocks are given beside the activations.

    Attributes:
        text: [B · L, D], projected, zero where no text is.
        attend: [B, 1, 1, L], True where cross-attention looks.
        keys: [layers, STREAMS, B · S] and
        text_keys: [layers, B · L] of LoRA's dropout.
        p: its probability.
    """

    text: Tensor
    attend: Tensor
    keys: Tensor
    text_keys: Tensor
    p: float


class BlockWeights(NamedTuple):
    """A block's layers; the three norms as (weight, bias)."""

    norms: tuple[tuple[Tensor, Tensor], ...]
    qkv: LinearWeights
    out: LinearWeights
    text_q: LinearWeights
    text_kv: LinearWeights
    text_out: LinearWeights
    fc1: LinearWeights
    fc2: LinearWeights

    def linears(self) -> dict[str, LinearWeights]:
        return {name: getattr(self, name) for name in self._fields if name != "norms"}


def pack(layer: Any) -> BlockWeights:
    """The weights of a `DecoderLayer` with peft's adapter on it."""
    norms = (layer.self_attn_layer_norm, layer.encoder_attn_layer_norm, layer.final_layer_norm)
    return BlockWeights(tuple((norm.weight, norm.bias) for norm in norms), *map(pack_linears, _grouped(layer)))


def adapter_parameters(layer: Any) -> list[nn.Parameter]:
    """Of the layers of `BlockWeights` in turn: all of a's, then all of b's."""
    pairs = [[adapter(linear) for linear in linears] for linears in _grouped(layer)]
    return [parameter for linears in pairs for side in zip(*linears, strict=True) for parameter in side]


def _grouped(layer: Any) -> Sequence[Sequence[Any]]:
    """The linear layers of a `DecoderLayer`, those over the same input together."""
    own, cross = layer.self_attn, layer.encoder_attn
    return [
        (own.q_proj, own.k_proj, own.v_proj),
        (own.out_proj,),
        (cross.q_proj,),
        (cross.k_proj, cross.v_proj),
        (cross.out_proj,),
        (layer.fc1,),
        (layer.fc2,),
    ]


def block(
    x: Tensor, text: Tensor, attend: Tensor, keys: Tensor, text_keys: Tensor, w: BlockWeights, heads: int, p: float
) -> Tensor:
    """One block.

    Args:
        x: [B, S, D].
        keys: [STREAMS, B · S] and
        text_keys: [B · L]; they and the others are those of `Inputs`.

    Returns:
        [B, S, D].
    """
    batch = len(x)
    rows = x.flatten(0, 1)  # [B · S, D]
    y = _norm(rows, w.norms[0])
    attended = self_attention(*split_heads(lora_linear(y, keys[0], w.qkv, p), batch, 3, heads))
    rows = rows + lora_linear(attended, keys[1], w.out, p)

    q = lora_linear(_norm(rows, w.norms[1]), keys[2], w.text_q, p)
    kv = lora_linear(text, text_keys, w.text_kv, p)
    rows = rows + lora_linear(attend_text(q, kv, attend, batch, heads), keys[3], w.text_out, p)

    y = F.gelu(lora_linear(_norm(rows, w.norms[2]), keys[4], w.fc1, p))
    return (rows + lora_linear(y, keys[5], w.fc2, p)).view_as(x)


class PlainBlocks:
    """All blocks, for any device and precision; autograd differentiates them."""

    def __init__(self, layers: Sequence[Any], heads: int, compiled: bool) -> None:
        self._weights = [pack(layer) for layer in layers]
        self._heads = heads
        self._block: Callable[..., Tensor] = torch.compile(block, dynamic=False) if compiled else block

    def refresh(self) -> None:
        """Nothing: the parameters are read where they are."""

    def forward(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> Tensor:
        """[B, S, D] → [B, S, D]."""
        if torch.is_grad_enabled():
            x.requires_grad_()  # else the first block would be compiled for itself
        for w, keys, text_keys in zip(self._weights, inputs.keys, inputs.text_keys, strict=True):
            arguments = (x, inputs.text, inputs.attend, keys, text_keys, w, self._heads, inputs.p)
            if checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._block, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._block(*arguments)
        return x

    def differentiable(self, x: Tensor, inputs: Inputs, checkpointing: bool) -> tuple[Tensor, Callable[[Tensor], None]]:
        """→ [B, S, D], and what takes a loss made from it and adds the adapters' gradients."""
        return self.forward(x, inputs, checkpointing), torch.Tensor.backward


def self_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, H, S, D/H] each → [B · S, D]."""
    return _joined(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def attend_text(q: Tensor, kv: Tensor, attend: Tensor, batch: int, heads: int) -> Tensor:
    """q [B · S, D], kv [B · L, 2 D], attend [B, 1, 1, L] → [B · S, D].

    Written out: a text is short, and no fused attention takes a mask as quickly.
    """
    (q,), (k, v) = split_heads(q, batch, 1, heads), split_heads(kv, batch, 2, heads)
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    return _joined(scores.masked_fill(~attend, float("-inf")).softmax(dim=-1).to(v.dtype) @ v)


def _norm(x: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *weights)


def split_heads(x: Tensor, batch: int, parts: int, heads: int) -> tuple[Tensor, ...]:
    """[B · S, parts · D] → parts times [B, H, S, D/H]."""
    return x.view(batch, -1, parts, heads, x.shape[1] // (parts * heads)).permute(2, 0, 3, 1, 4).unbind()


def _joined(heads: Tensor) -> Tensor:
    """[B, H, S, D/H] → [B · S, D]."""
    return heads.transpose(1, 2).flatten(2).flatten(0, 1)


def head_losses(x: Tensor, norm: tuple[Tensor, Tensor], heads: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """The loss of each clip and codebook from the last block's output, without logits in fp32 in memory.

    Args:
        x: [B, S, D].
        heads: [K · cardinality, D].
        targets, valid: [B, K, S].

    Returns:
        [B, K], nats; see `loss.clip_losses`.
    """
    from musicgen_core.training.loss import clip_losses

    codebooks = targets.shape[1]
    logits = F.linear(_norm(x, norm), heads).unflatten(-1, (codebooks, -1))  # [B, S, K, cardinality]
    return clip_losses(logits.transpose(1, 2), targets, valid)

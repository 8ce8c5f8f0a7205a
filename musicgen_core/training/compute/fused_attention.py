"""Cross-attention on GPUs, forward and backward, and the layout change after self-attention.

Self-attention is PyTorch's own fused attention. Cross-attention reads a text of some tens of tokens, far too few for a
library's tiles, and its mask rules out their fastest path; the kernels of `kernels.py` hold the whole text on the SM.
`join_heads` gathers the gradients of q, k and v from [B, H, S, D/H] into the [B · S, 3 D] that the packed projection's
GEMM reads, in one kernel rather than three transpositions and a concatenation.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from musicgen_core.devices import shared_memory_bytes
from musicgen_core.training.compute import blocks, kernels


def fused_cross_attention(q: Tensor, kv: Tensor, attend: Tensor, heads: int) -> Tensor:
    """Return `blocks.cross_attention`, [B · S, D].

    Args:
        q: [B · S, D].
        kv: [B · L, 2 D], keys and values of the texts.
        attend: [B, 1, 1, L], True where there is text.
        heads: D / heads is the width of one.
    """
    batch, length, shape = _shape(q, attend, heads)
    if not cross_attention_fits(shape["L"], shared_memory_bytes(q.device)):
        return blocks.cross_attention(q, kv, attend, batch, heads)
    out = torch.empty_like(q)
    kernels.cross_attention_kernel[(triton.cdiv(length, 64), batch * heads)](q, kv, attend, out, length, **shape)
    return out


def fused_cross_attention_grad(
    q: Tensor, kv: Tensor, attend: Tensor, heads: int, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of q and kv from that of the output, `grad` [B · S, D]; the rest as in the forward pass."""
    batch, length, shape = _shape(q, attend, heads)
    if not cross_attention_fits(shape["L"], shared_memory_bytes(q.device)):
        with torch.enable_grad():
            inputs = q.detach().requires_grad_(), kv.detach().requires_grad_()
            grad_q, grad_kv = torch.autograd.grad(blocks.cross_attention(*inputs, attend, batch, heads), inputs, grad)
        return grad_q, grad_kv
    grad_q, grad_kv = torch.empty_like(q), torch.empty_like(kv)
    kernels.cross_attention_grad_kernel[(batch * heads,)](q, kv, attend, grad, grad_q, grad_kv, length, **shape)
    return grad_q, grad_kv


def cross_attention_fits(tokens: int, shared_bytes: int) -> bool:
    """Return whether the kernels' tiles of keys, values and weights fit an SM's shared memory.

    A text may be of any length; one that is too long for the kernels is computed by plain operations.

    Args:
        tokens: the tile's length L, a power of two.
        shared_bytes: the shared memory of a thread block. The kernels' need was read off Triton 3.6 for heads of 64.
    """
    return (32 + 5 * tokens / 8) * 1024 <= shared_bytes


def join_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return q, k and v, [B, H, S, D/H] each, side by side: [B · S, 3 D]."""
    if q.stride() != k.stride() or q.stride() != v.stride() or q.stride(3) != 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    batch, heads, length, head = q.shape
    width = heads * head
    out = q.new_empty(batch * length, 3 * width)
    kernels.join_heads_kernel[(triton.cdiv(len(out), 4), triton.cdiv(width, 1024))](
        q, k, v, out, len(out), length, *q.stride()[:3], width=width, HEAD=head, M=4, N=1024, num_warps=4
    )
    return out


def _shape(q: Tensor, attend: Tensor, heads: int) -> tuple[int, int, dict[str, Any]]:
    batch, text_length, width = len(attend), attend.shape[-1], q.shape[1]
    tokens = max(16, triton.next_power_of_2(text_length))
    head = width // heads
    return batch, len(q) // batch, {
        "text_length": text_length, "scale": head**-0.5, "width": width, "HEADS": heads, "HEAD": head, "M": 64,
        "L": tokens, "num_warps": 4,
    }  # fmt: skip

"""What surrounds self-attention on GPUs, and attention to a text: `blocks.attend_text` and its backward pass."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from musicgen_core.devices import shared_memory_bytes
from musicgen_core.training import blocks, kernels


def attend_text(q: Tensor, kv: Tensor, attend: Tensor, heads: int) -> Tensor:
    """q [B · S, D], kv [B · L, 2 D], attend [B, 1, 1, L] → [B · S, D]."""
    batch, length, shape = _shape(q, attend, heads)
    if not fits(shape["L"], shared_memory_bytes(q.device)):
        return blocks.attend_text(q, kv, attend, batch, heads)
    out = torch.empty_like(q)
    kernels.attend_text_kernel[(triton.cdiv(length, 64), batch * heads)](q, kv, attend, out, length, **shape)
    return out


def attend_text_grad(q: Tensor, kv: Tensor, attend: Tensor, heads: int, grad: Tensor) -> tuple[Tensor, Tensor]:
    """grad, of the output → of q and kv."""
    batch, length, shape = _shape(q, attend, heads)
    if not fits(shape["L"], shared_memory_bytes(q.device)):
        with torch.enable_grad():
            inputs = q.detach().requires_grad_(), kv.detach().requires_grad_()
            of_q, of_kv = torch.autograd.grad(blocks.attend_text(*inputs, attend, batch, heads), inputs, grad)
        return of_q, of_kv
    of_q, of_kv = torch.empty_like(q), torch.empty_like(kv)
    kernels.attend_text_grad_kernel[(batch * heads,)](q, kv, attend, grad, of_q, of_kv, length, **shape)
    return of_q, of_kv


def fits(words: int, shared_bytes: int) -> bool:
    """Whether the kernels' keys, values and weights of so many words fit a multiprocessor's shared memory.

    A text may be of any length, and what is too long for the kernels is computed plainly.

    Args:
        words: a power of two.
        shared_bytes: that a program may have. What is needed was read off Triton 3.6 for heads of 64.
    """
    return (32 + 5 * words / 8) * 1024 <= shared_bytes


def join_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, H, S, D/H] each → [B · S, 3 D]."""
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
    batch, texts, width = len(attend), attend.shape[-1], q.shape[1]
    words = max(16, triton.next_power_of_2(texts))
    head = width // heads
    return batch, len(q) // batch, {
        "texts": texts, "scale": head**-0.5, "width": width, "HEADS": heads, "HEAD": head, "M": 64, "L": words,
        "num_warps": 4,
    }  # fmt: skip

"""Compare self-attention's kernel with PyTorch on a CPU, where Triton interprets it; run by test_decoding.

TRITON_INTERPRET=1 python interpreted.py interpreted_attention.py SPLITS SCALED → the largest relative error over
several positions, that of what is kept of the newest key and value among them
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from musicgen_core.generation.decode_kernels import decode_attention_kernel
from musicgen_core.generation.decoding import quantize_int8

ROWS, HEADS, HEAD, POSITIONS, BLOCK = 2, 3, 32, 300, 16


def main(splits: int, scaled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(2, ROWS, HEADS, POSITIONS, HEAD, generator=generator)
    cache, scales = quantize_int8(exact, torch.float32) if scaled else (exact.clone(), exact)
    known = cache * scales[..., None] if scaled else exact
    out, arrived = torch.empty(ROWS, HEADS, HEAD), torch.zeros(ROWS * HEADS, dtype=torch.int32)
    numerators, stats = torch.empty(ROWS * HEADS, splits, HEAD), torch.empty(ROWS * HEADS, splits, 2)
    errors = []
    for position in (0, 1, BLOCK, BLOCK + 1, 200, POSITIONS - 1):
        qkv = torch.randn(ROWS, 3, HEADS, HEAD, generator=generator)
        query, key, value = (one[:, :, None] for one in qkv.unbind(dim=1))
        decode_attention_kernel[(ROWS * HEADS, splits)](
            qkv, cache, scales, torch.tensor(position), None, out, numerators, stats, arrived, POSITIONS, HEAD**-0.5,
            HEADS=HEADS, HEAD=HEAD, BLOCK=BLOCK, SPLITS=splits, SCALED=scaled, PREFIXED=False,
        )  # fmt: skip
        keys, values = torch.cat([known[:, :, :, :position], torch.stack([key, value])], dim=3)
        errors.append(_error(out, F.scaled_dot_product_attention(query, keys, values)[:, :, 0]))
        newest, kept = torch.stack([key, value])[:, :, :, 0], cache[:, :, :, position]
        if scaled:
            eight, own_scales = quantize_int8(newest, torch.float32)
            newest, kept = eight * own_scales[..., None], kept * scales[:, :, :, position, None]
        errors.append(_error(kept, newest))
        known[:, :, :, position] = newest
    assert not arrived.any()
    print(torch.stack(errors).max().item())


def _error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).norm() / expected.norm()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "True")

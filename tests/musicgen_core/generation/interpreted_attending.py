"""Compares self-attention's kernel with torch on the CPU, where Triton interprets it; run by test_decoding.

TRITON_INTERPRET=1 python interpreted.py interpreted_attending.py SPLITS SCALED → the largest relative error over
several positions, that of what is kept of the newest key and value among them
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F

from musicgen_core.generation.decode_kernels import attend_kernel
from musicgen_core.generation.decoding import in_eight_bits

ROWS, HEADS, HEAD, POSITIONS, BLOCK = 2, 3, 32, 300, 16


def main(splits: int, scaled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(2, ROWS, HEADS, POSITIONS, HEAD, generator=generator)
    cache, scales = in_eight_bits(exact, torch.float32) if scaled else (exact.clone(), exact)
    known = cache * scales[..., None] if scaled else exact
    out, arrived = torch.empty(ROWS, HEADS, HEAD), torch.zeros(ROWS * HEADS, dtype=torch.int32)
    totals, stats = torch.empty(ROWS * HEADS, splits, HEAD), torch.empty(ROWS * HEADS, splits, 2)
    errors = []
    for position in (0, 1, BLOCK, BLOCK + 1, 200, POSITIONS - 1):
        fresh = torch.randn(ROWS, 3, HEADS, HEAD, generator=generator)
        query, key, value = (one[:, :, None] for one in fresh.unbind(dim=1))
        attend_kernel[(ROWS * HEADS, splits)](
            fresh, cache, scales, torch.tensor(position), out, totals, stats, arrived, POSITIONS, HEAD**-0.5,
            HEADS=HEADS, HEAD=HEAD, BLOCK=BLOCK, SPLITS=splits, SCALED=scaled,
        )  # fmt: skip
        keys, values = torch.cat([known[:, :, :, :position], torch.stack([key, value])], dim=3)
        errors.append(_error(out, F.scaled_dot_product_attention(query, keys, values)[:, :, 0]))
        newest, kept = torch.stack([key, value])[:, :, :, 0], cache[:, :, :, position]
        if scaled:
            eight, of_each = in_eight_bits(newest, torch.float32)
            newest, kept = eight * of_each[..., None], kept * scales[:, :, :, position, None]
        errors.append(_error(kept, newest))
        known[:, :, :, position] = newest
    assert not arrived.any()
    print(torch.stack(errors).max().item())


def _error(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    return (found - expected).norm() / expected.norm()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "True")

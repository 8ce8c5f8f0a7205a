"""Products with frozen weights in 8 bits (e4m3), scaled by row, for GPUs of compute capability 8.9 and newer.

Source of the recipe: Micikevicius et al. 2022, "FP8 Formats for Deep Learning"; scales by row as in torchao's
`rowwise` training recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 448.0  # of e4m3


Quantized = tuple[Tensor, Tensor]
"""e4m3 [rows, columns] and fp32 scales [rows, 1]"""


def quantize(x: Tensor) -> Quantized:
    """x [rows, columns] → values and scales, whose product is about x."""
    if x.is_cuda:
        return _quantize_fused(x if x.stride(1) == 1 else x.contiguous())
    scales = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (x.float() / scales).to(torch.float8_e4m3fn), scales


def empty(rows: int, columns: int, device: torch.device) -> Quantized:
    """Room for what is quantized."""
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty(rows, 1, dtype=torch.float32, device=device)


def _quantize_fused(x: Tensor) -> Quantized:
    import triton  # not everywhere

    from musicgen_core.training import kernels

    rows, width = x.shape
    values, scales = empty(rows, width, x.device)
    warps = 4 if width <= 4096 else 16
    kernels.quantize_kernel[(rows,)](
        x, values, scales, rows, x.stride(0), width=width, N=triton.next_power_of_2(width), num_warps=warps
    )
    return values, scales


def multiply(x: Quantized, weight: Quantized, dtype: torch.dtype) -> Tensor:
    """Quantized x [rows, in] times the transpose of a quantized weight [out, in] → [rows, out]."""
    if not x[0].is_cuda:  # for tests
        return ((x[0].float() * x[1]) @ (weight[0].float() * weight[1]).T).to(dtype)
    return torch._scaled_mm(
        x[0], weight[0].t(), scale_a=x[1], scale_b=weight[1].t(), out_dtype=dtype, use_fast_accum=True
    )

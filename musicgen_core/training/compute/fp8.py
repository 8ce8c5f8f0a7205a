"""GEMMs with frozen weights in FP8 (e4m3), scaled per row, for GPUs of compute capability 8.9 and newer.

The Tensor Cores multiply FP8 at twice the rate of bf16, and FP8 operands are half as large. e4m3 has 3 bits of mantissa
and reaches from 2⁻⁹ to 448, so that a tensor must be scaled into that range first:

    scale[row] = max |x[row, :]| / 448        one fp32 number per row of each operand
    values     = x / scale, rounded to e4m3

    x Wᵀ ≈ (values_x values_Wᵀ) · scale_x · scale_Wᵀ

The hardware sums the products of the values in fp32, and the scales, an outer product, are applied to the finished
tile. Scales per row rather than per tensor keep one row of large activations from pushing all others below 2⁻⁹ of the
range; a reduction never mixes scales, since each row of the result sees one scale of x and each column one of W.

A frozen weight is quantized once. Activations and gradients are quantized on the fly, by the kernel that produces them
where it holds whole rows in registers (layer norm and its backward pass), else by `kernels.quantize_kernel`, which
reads a row once, takes its maximum and writes values and scale. LoRA's own matrices and gradients stay in 16 and 32
bits.

Source of the recipe: Micikevicius et al. 2022, "FP8 Formats for Deep Learning"; scales per row as in torchao's
`rowwise` training recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor

E4M3_MAX = 448.0
"""The largest finite number of e4m3."""


Quantized = tuple[Tensor, Tensor]
"""Values [rows, columns] in e4m3, and scales [rows, 1] in fp32."""


def quantize_rows(x: Tensor) -> Quantized:
    """Return values and scales whose product is close to x [rows, columns]."""
    if x.is_cuda:
        return _quantize_rows_on_gpu(x if x.stride(1) == 1 else x.contiguous())
    scales = x.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / E4M3_MAX
    return (x.float() / scales).to(torch.float8_e4m3fn), scales


def empty(rows: int, columns: int, device: torch.device) -> Quantized:
    """Return uninitialised values and scales for a kernel to fill."""
    values = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device)
    return values, torch.empty(rows, 1, dtype=torch.float32, device=device)


def _quantize_rows_on_gpu(x: Tensor) -> Quantized:
    import triton  # not installed everywhere

    from musicgen_core.training.compute import kernels

    rows, width = x.shape
    values, scales = empty(rows, width, x.device)
    warps = 4 if width <= 4096 else 16
    kernels.quantize_kernel[(rows,)](
        x, values, scales, rows, x.stride(0), width=width, N=triton.next_power_of_2(width), num_warps=warps
    )
    return values, scales


def multiply(x: Quantized, weight: Quantized, dtype: torch.dtype) -> Tensor:
    """Return x Wᵀ [rows, out] in `dtype`, from x [rows, in] and a weight W [out, in], both quantized."""
    if not x[0].is_cuda:  # for tests: no FP8 GEMM on a CPU
        return ((x[0].float() * x[1]) @ (weight[0].float() * weight[1]).T).to(dtype)
    return torch._scaled_mm(
        x[0], weight[0].t(), scale_a=x[1], scale_b=weight[1].t(), out_dtype=dtype, use_fast_accum=True
    )

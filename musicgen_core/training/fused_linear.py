"""Linear layers with LoRA for GPUs: what stands between the large products is fused into a few kernels.

LoRA's up-projection is part of the frozen product: its columns stand beside the frozen weight's, and the down-projected
activations beside the activations, so that x Wᵀ + h (s B)ᵀ is [x h] [W sB]ᵀ, and the backward pass's product gives the
gradients of x and h at once. With FP8 this holds backwards alone; forwards the update is added in 16 bits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from musicgen_core.training import dropout, fp8, kernels
from musicgen_core.training.lora_linear import LinearWeights

_ALIGNMENT = 16  # columns: 32 bytes, which the matrix units' loads want
_ROWS = 128  # of a tile, at most; splits are multiples
_TALL = 8192  # rows from which taller tiles are faster
_EPSILON = 1e-5  # of nn.LayerNorm
SPLITS = 16
"""Of the rows in products whose result is small: enough programs for all multiprocessors, summed in a fixed order."""

Norm = tuple[Tensor, Tensor]
"""weight and bias, [width] each"""


class Gradients(NamedTuple):
    """Where the gradients of a linear layer's adapters go: [SPLITS, total], at an offset each of a and b."""

    partial: Tensor
    a: int
    b: int


class Activations(NamedTuple):
    """The input of a linear layer, and LoRA's part of it.

    Attributes:
        operand: of the product: [rows, in + ranks + padding], or with FP8 values [rows, in] and scales [rows, 1].
        h: [rows, ranks + padding], LoRA's down-projection of the activations after dropout.
        mean, rstd: [rows], where a norm made the activations.
    """

    operand: Tensor | tuple[Tensor, Tensor]
    h: Tensor
    mean: Tensor | None
    rstd: Tensor | None


class FusedLinear:
    """One or several of peft's linear layers of the same shape over the same input, in 16 bits or FP8.

    The frozen weights move here; with FP8 the layers' own are given up. The adapters' parameters stay where they are,
    in fp32: `refresh` brings them to where the products read them.

    Args:
        down: [ranks, in], the a's in 16 bits, which somebody else keeps up to date.
    """

    def __init__(self, weights: LinearWeights, down: Tensor, gradients: Gradients, precision: str) -> None:
        self.b, self.scale, self.down, self.gradients = weights.b, weights.scale, down, gradients
        self.out, self.width = weights.weight.shape
        self.parts, self.r = len(weights.a), len(weights.a[0])
        self.ranks = self.parts * self.r
        self.padded = -(-self.ranks // _ALIGNMENT) * _ALIGNMENT
        new = weights.weight.new_zeros
        self.quantized: tuple[Tensor, Tensor] | None = None
        self.transposed: tuple[Tensor, Tensor] | None = None
        if precision == "fp8":
            self.quantized = fp8.quantize(weights.weight)
            values, scales = fp8.quantize(torch.cat([weights.weight.t(), new(self.padded, self.out)]))
            self.transposed = values, scales
            self.up = new(self.out, self.ranks)
        else:
            self.frozen = torch.cat([weights.weight, new(self.out, self.padded)], dim=1)
            self.up = self.frozen[:, self.width : self.width + self.ranks]
        own = new(self.out, 0) if precision == "fp8" else self.frozen[:, : self.width]
        for base, part in zip(weights.bases, own.chunk(self.parts), strict=True):
            base.data = part

    def refresh(self) -> None:
        """Bring the b's, times the scale, to where the products read them; with FP8 each rank has its own scale."""
        for i, (rows, b) in enumerate(zip(self.up.chunk(self.parts), self.b, strict=True)):
            torch.mul(b, self.scale, out=rows[:, i * self.r : (i + 1) * self.r])
        if self.transposed is not None:
            for whole, part in zip(self.transposed, fp8.quantize(self.up.t()), strict=True):
                whole[self.width : self.width + self.ranks] = part

    def activate(self, kind: str, x: Tensor, keys: Tensor, p: float, norm: Norm | None = None) -> Activations:
        """The input of this layer from x [rows, in], contiguous; kind: norm, gelu or none."""
        rows = len(x)
        stride = self.width + self.padded
        xh, h = x.new_empty(rows, stride), x.new_empty(rows, self.padded)
        mean, rstd = x.new_empty(2, rows, dtype=torch.float32) if kind == "norm" else (None, None)
        quantized = None
        if norm is not None:
            quantized = fp8.empty(rows, self.width, x.device) if self.quantized else None
            kernels.norm_kernel[(triton.cdiv(rows, 2),)](
                x, xh, *(quantized or (None, None)), *norm, mean, rstd, rows, _EPSILON,
                width=self.width, stride=stride, M=2, N=triton.next_power_of_2(self.width),
                FP8=quantized is not None, num_warps=4,
            )  # fmt: skip
            x = xh
        tall = rows > _TALL and kind != "gelu"
        tile = 32 if tall else 16
        kernels.down_kernel[(triton.cdiv(rows, tile),)](
            x, xh, h, self.down, keys, rows, dropout.threshold(p), 1 / (1 - p),
            width=self.width, x_stride=x.stride(0), stride=stride, R=self.ranks, RANKS=_ranks(self.ranks),
            M=tile, N=self._columns(128 if tall else 256), KIND=kind, DROP=p > 0, num_warps=4,
            num_stages=4 if tall else 3,
        )  # fmt: skip
        if self.quantized is None:
            return Activations(xh, h, mean, rstd)
        return Activations(quantized or fp8.quantize(xh[:, : self.width]), h, mean, rstd)

    def forward(self, x: Activations, residual: Tensor | None = None) -> Tensor:
        """→ [rows, out], added to the residual if there is one."""
        if self.quantized is None:
            assert isinstance(x.operand, Tensor)
            weight = self.frozen.t()
            return x.operand @ weight if residual is None else torch.addmm(residual, x.operand, weight)
        assert not isinstance(x.operand, Tensor)
        out = fp8.multiply(x.operand, self.quantized, x.h.dtype)
        columns = self._columns(128)
        kernels.add_up_kernel[(triton.cdiv(len(out), 64), triton.cdiv(self.out, columns))](
            out, x.h, self.up, residual, len(out),
            width=self.out, h_stride=self.padded, R=self.ranks, RANKS=_ranks(self.ranks), M=64, N=columns,
            RESIDUAL=residual is not None, num_warps=4,
        )  # fmt: skip
        return out

    def backward(self, grad: Tensor, quantized: fp8.Quantized | None = None) -> Tensor:
        """grad [rows, out], perhaps quantized already → [rows, in + ranks + padding], of the activations and of h."""
        if self.transposed is None:
            return grad @ self.frozen
        return fp8.multiply(quantized or fp8.quantize(grad), self.transposed, grad.dtype)

    def _columns(self, most: int) -> int:
        """Of a tile: with many ranks fewer, for what a multiprocessor holds."""
        return max(16, min(most, most * 32 // _ranks(self.ranks)))

    def up_grad(self, grad: Tensor, h: Tensor) -> None:
        """The gradient of b from grad [rows, out], contiguous."""
        part = self.out // self.parts
        per_split = _per_split(len(grad))
        kernels.up_grad_kernel[(self.parts * triton.cdiv(part, 64), SPLITS)](
            grad, h, self.gradients.partial[:, self.gradients.b :], len(grad), per_split, self.scale,
            part=part, parts=self.parts, h_stride=self.padded, total=self.gradients.partial.stride(0),
            R=self.r, RANKS=_ranks(self.r), M=_ROWS, N=64, num_warps=4,
        )  # fmt: skip

    def down_grad(
        self, kind: str, both: Tensor, made_from: Tensor, x: Activations, keys: Tensor, p: float,
        norm: Norm | None = None, maker: tuple[FusedLinear, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """The gradient of a, and → that of what the activations were made from, or of these where a norm made them.

        Args:
            maker: with gelu, the layer before and its h, whose b's gradient is taken on the way.
        """
        rows = len(made_from)
        gamma, beta = norm or (None, None)
        earlier, h = maker or (self, x.h)
        dx = torch.empty_like(made_from)
        partial = self.gradients.partial
        columns = self._columns(32 if kind == "gelu" else 64)
        kernels.down_grad_kernel[(triton.cdiv(self.width, columns), SPLITS)](
            made_from, both, self.down, keys, gamma, beta, x.mean, x.rstd, dx, h,
            partial[:, self.gradients.a :], partial[:, earlier.gradients.b :], rows, _per_split(rows),
            dropout.threshold(p), 1 / (1 - p), earlier.scale,
            width=self.width, stride=self.width + self.padded, h_stride=earlier.padded, total=partial.stride(0),
            R=self.ranks, RANKS=_ranks(max(self.ranks, earlier.ranks)), R_B=earlier.r, N=columns,
            M=16 if kind == "gelu" else 32, num_warps=2 if kind == "gelu" else 4, num_stages=3,
            maxnreg=128 if _ranks(self.ranks) <= 32 else None,
            KIND=kind, DROP=p > 0,
        )  # fmt: skip
        return dx


def norm_grad(
    grad: Tensor, made_from: Tensor, x: Activations, weight: Tensor, residual: Tensor, quantize: bool
) -> tuple[Tensor, fp8.Quantized | None]:
    """The residual's gradient plus that through a norm; all [rows, width]. If asked for, also quantized."""
    rows, width = grad.shape
    dx, quantized = torch.empty_like(grad), fp8.empty(rows, width, grad.device) if quantize else None
    kernels.norm_grad_kernel[(triton.cdiv(rows, 2),)](
        made_from, grad, weight, x.mean, x.rstd, residual, dx, *(quantized or (None, None)), rows,
        width=width, M=2, N=triton.next_power_of_2(width), FP8=quantize, num_warps=4,
    )  # fmt: skip
    return dx, quantized


def add_up(gradients: Tensor, partial: Tensor) -> None:
    """gradients [total] += the sum of partial [SPLITS, total]."""
    total = len(gradients)
    kernels.add_splits_kernel[(triton.cdiv(total, 1024),)](gradients, partial, total, SPLITS=SPLITS, N=1024)


def _ranks(ranks: int) -> int:
    """The matrix units take 16 at least, and powers of two."""
    return max(16, triton.next_power_of_2(ranks))


def _per_split(rows: int) -> int:
    return _ROWS * triton.cdiv(rows, _ROWS * SPLITS)

"""Linear layers with LoRA on GPUs: one large GEMM each way, and the kernels of `kernels.py` between the GEMMs.

A linear layer with LoRA computes y = x Wᵀ + h (s B)ᵀ, where h = dropout(x) Aᵀ / (1 − p) [rows, ranks], W [out, in] is
frozen, and s is alpha / r. As plain operations that is a large GEMM, two thin ones and an addition, and the thin ones
are bound by memory bandwidth: h has 8 columns, but computing it reads all of x, and adding the update reads and writes
all of y.

LoRA's up-projection is therefore part of the large GEMM, by concatenation along the reduction:

    forward     y = [x  h  0] [W  sB  0]ᵀ             [rows, in + ranks + padding] · [out, in + ranks + padding]ᵀ
    backward    [grad_x  grad_h  ·] = grad_y [W  sB  0]

The operand [W sB 0] is stored once and serves both directions; `refresh` copies the trained B into it after each
optimizer step. The reduction grows by at most 16 columns of padding (32 bytes, the alignment that the Tensor Cores'
loads require), so that the update is nearly free. What remains around the GEMM is one kernel in each direction:

    down_kernel        reads x, writes [x h 0]: norm or GELU, dropout and the thin GEMM in one pass
    down_grad_kernel   reads x and [grad_x grad_h], writes the input's gradient and grad_a, and with GELU grad_b as well
    up_grad_kernel     reads grad_y and h, writes grad_b

With FP8 the frozen operands are quantized per row once. The backward GEMM still has the concatenated form, since its
reduction runs over `out` and each of its rows, of W and of sB, has a scale of its own. In the forward GEMM LoRA's
columns would share the frozen weight's scales, so there the update is added in 16 bits by `add_up_kernel`.

The weight gradients are split-K GEMMs, see `kernels`: [SPLITS, total] partial sums, added in a fixed order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from musicgen_core.training.compute import dropout, fp8, kernels
from musicgen_core.training.compute.blocks import LinearWeights

_ALIGNMENT = 16  # columns: 32 bytes, which the Tensor Cores' loads require
_ROWS = 128  # rows of a tile, at most; a split is a multiple of it
_TALL = 8192  # rows from which taller tiles are faster
_EPSILON = 1e-5  # of nn.LayerNorm
SPLITS = 16
"""Split-K factor of the thin GEMMs, enough program instances for all SMs; partial sums are added in a fixed order."""

Norm = tuple[Tensor, Tensor]
"""Weight and bias of a layer norm, [width] each."""


class Gradients(NamedTuple):
    """The buffer for the gradients of a linear layer's adapters.

    Attributes:
        partial: [SPLITS, total], the partial sums of all layers of a block.
        a: the offset of grad_a in a row of it.
        b: the offset of grad_b.
    """

    partial: Tensor
    a: int
    b: int


class Activations(NamedTuple):
    """The input of a linear layer, with LoRA's down-projection of it.

    Attributes:
        operand: the left operand of the GEMM, [rows, in + ranks + padding]; with FP8 values [rows, in] and scales
            [rows, 1].
        h: [rows, ranks + padding], LoRA's down-projection of the activations after dropout.
        mean: [rows], the mean of each row that a norm read; None without a norm.
        rstd: [rows], its reciprocal standard deviation; None without a norm.
    """

    operand: Tensor | tuple[Tensor, Tensor]
    h: Tensor
    mean: Tensor | None
    rstd: Tensor | None


class FusedLinear:
    """One or several of peft's linear layers of the same shape over the same input, in 16 bits or FP8.

    The frozen weights move here: the layers' own become views, or with FP8 are dropped. The adapters' parameters stay
    where they are, in fp32; `refresh` copies them into the GEMMs' operands.

    Args:
        down: [ranks, in], the A matrices of all packed layers in 16 bits; the caller keeps it up to date.
        gradients: where the adapters' gradients are accumulated.
        precision: `fp8`, or anything else for the precision of the weights.
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
            self.quantized = fp8.quantize_rows(weights.weight)
            values, scales = fp8.quantize_rows(torch.cat([weights.weight.t(), new(self.padded, self.out)]))
            self.transposed = values, scales
            self.up = new(self.out, self.ranks)
        else:
            self.frozen = torch.cat([weights.weight, new(self.out, self.padded)], dim=1)
            self.up = self.frozen[:, self.width : self.width + self.ranks]
        own = new(self.out, 0) if precision == "fp8" else self.frozen[:, : self.width]
        for base, part in zip(weights.bases, own.chunk(self.parts), strict=True):
            base.data = part

    def refresh(self) -> None:
        """Copy the B matrices, times LoRA's scale, into the GEMMs' operands; with FP8 each rank has its own scale."""
        for i, (rows, b) in enumerate(zip(self.up.chunk(self.parts), self.b, strict=True)):
            torch.mul(b, self.scale, out=rows[:, i * self.r : (i + 1) * self.r])
        if self.transposed is not None:
            for whole, part in zip(self.transposed, fp8.quantize_rows(self.up.t()), strict=True):
                whole[self.width : self.width + self.ranks] = part

    def activate(self, kind: str, x: Tensor, dropout_seeds: Tensor, p: float, norm: Norm | None = None) -> Activations:
        """Return the operand of this layer's GEMM.

        Args:
            kind: what produces the activations from x: `norm`, `gelu`, or `none` if x is the input itself.
            x: [rows, in], contiguous.
            dropout_seeds: [rows], int32, the seed of each row's dropout mask.
            p: probability of dropout.
            norm: weight and bias of the norm, if kind is `norm`.
        """
        rows = len(x)
        stride = self.width + self.padded
        xh, h = x.new_empty(rows, stride), x.new_empty(rows, self.padded)
        mean, rstd = x.new_empty(2, rows, dtype=torch.float32) if kind == "norm" else (None, None)
        quantized = None
        if norm is not None:
            quantized = fp8.empty(rows, self.width, x.device) if self.quantized else None
            kernels.layer_norm_kernel[(triton.cdiv(rows, 2),)](
                x, xh, *(quantized or (None, None)), *norm, mean, rstd, rows, _EPSILON,
                width=self.width, stride=stride, M=2, N=triton.next_power_of_2(self.width),
                FP8=quantized is not None, num_warps=4,
            )  # fmt: skip
            x = xh
        is_tall = rows > _TALL and kind != "gelu"
        tile = 32 if is_tall else 16
        kernels.down_kernel[(triton.cdiv(rows, tile),)](
            x, xh, h, self.down, dropout_seeds, rows, dropout.threshold(p), 1 / (1 - p),
            width=self.width, x_stride=x.stride(0), stride=stride, R=self.ranks, RANKS=_ranks(self.ranks),
            M=tile, N=self._columns(128 if is_tall else 256), KIND=kind, DROP=p > 0, num_warps=4,
            num_stages=4 if is_tall else 3,
        )  # fmt: skip
        if self.quantized is None:
            return Activations(xh, h, mean, rstd)
        return Activations(quantized or fp8.quantize_rows(xh[:, : self.width]), h, mean, rstd)

    def forward(self, x: Activations, residual: Tensor | None = None) -> Tensor:
        """Return the layer's output [rows, out], plus the residual if there is one."""
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
        """Return [grad_x, grad_h], [rows, in + ranks + padding].

        Args:
            grad: [rows, out], the gradient of the output.
            quantized: the same in FP8, if it is known already.
        """
        if self.transposed is None:
            return grad @ self.frozen
        return fp8.multiply(quantized or fp8.quantize_rows(grad), self.transposed, grad.dtype)

    def _columns(self, most: int) -> int:
        """Return the columns of a tile: fewer with many ranks, so that its tiles fit the SM."""
        return max(16, min(most, most * 32 // _ranks(self.ranks)))

    def up_grad(self, grad: Tensor, h: Tensor) -> None:
        """Write the partial sums of grad_b, from grad [rows, out], contiguous, and h [rows, ranks + padding]."""
        part = self.out // self.parts
        per_split = _per_split(len(grad))
        kernels.up_grad_kernel[(self.parts * triton.cdiv(part, 64), SPLITS)](
            grad, h, self.gradients.partial[:, self.gradients.b :], len(grad), per_split, self.scale,
            part=part, parts=self.parts, h_stride=self.padded, total=self.gradients.partial.stride(0),
            R=self.r, RANKS=_ranks(self.r), M=_ROWS, N=64, num_warps=4,
        )  # fmt: skip

    def down_grad(
        self, kind: str, grad_yh: Tensor, source: Tensor, x: Activations, dropout_seeds: Tensor, p: float,
        norm: Norm | None = None, maker: tuple[FusedLinear, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Write the partial sums of grad_a, and return the gradient w.r.t. the pre-activation input [rows, in].

        If `kind` is `norm`, the gradient w.r.t. the normalised input is returned; `layer_norm_grad` continues from it.

        Args:
            grad_yh: [rows, in + ranks + padding], the result of `backward`.
            source: [rows, in], the x that `activate` was called with.
            x: the result of `activate`; only its h, mean and rstd are read.
            dropout_seeds: [rows], int32.
            p: probability of dropout.
            norm: weight and bias of the norm, if kind is `norm`.
            maker: if kind is `gelu`, the layer that computed `source` and its h: its grad_b is computed in the same
                pass.
        """
        rows = len(source)
        gamma, beta = norm or (None, None)
        earlier, h = maker or (self, x.h)
        dx = torch.empty_like(source)
        partial = self.gradients.partial
        columns = self._columns(32 if kind == "gelu" else 64)
        kernels.down_grad_kernel[(triton.cdiv(self.width, columns), SPLITS)](
            source, grad_yh, self.down, dropout_seeds, gamma, beta, x.mean, x.rstd, dx, h,
            partial[:, self.gradients.a :], partial[:, earlier.gradients.b :], rows, _per_split(rows),
            dropout.threshold(p), 1 / (1 - p), earlier.scale,
            width=self.width, stride=self.width + self.padded, h_stride=earlier.padded, total=partial.stride(0),
            R=self.ranks, RANKS=_ranks(max(self.ranks, earlier.ranks)), R_B=earlier.r, N=columns,
            M=16 if kind == "gelu" else 32, num_warps=2 if kind == "gelu" else 4, num_stages=3,
            maxnreg=128 if _ranks(self.ranks) <= 32 else None,
            KIND=kind, DROP=p > 0,
        )  # fmt: skip
        return dx


def layer_norm_grad(
    grad: Tensor, source: Tensor, x: Activations, weight: Tensor, residual: Tensor, quantize: bool
) -> tuple[Tensor, fp8.Quantized | None]:
    """Return the residual's gradient plus the gradient through a norm, [rows, width], and its FP8 form.

    Args:
        grad: [rows, width], the gradient of the norm's output.
        source: [rows, width], the norm's input.
        x: the result of `FusedLinear.activate`, for its mean and rstd.
        weight: [width], of the norm.
        residual: [rows, width], the gradient that reaches the norm's input along the residual stream.
        quantize: whether to quantize the result in the same pass; without it the second value is None.
    """
    rows, width = grad.shape
    dx, quantized = torch.empty_like(grad), fp8.empty(rows, width, grad.device) if quantize else None
    kernels.layer_norm_grad_kernel[(triton.cdiv(rows, 2),)](
        source, grad, weight, x.mean, x.rstd, residual, dx, *(quantized or (None, None)), rows,
        width=width, M=2, N=triton.next_power_of_2(width), FP8=quantize, num_warps=4,
    )  # fmt: skip
    return dx, quantized


def add_splits(gradients: Tensor, partial: Tensor) -> None:
    """Add the sum of partial [SPLITS, total] to gradients [total] in place."""
    total = len(gradients)
    kernels.add_splits_kernel[(triton.cdiv(total, 1024),)](gradients, partial, total, SPLITS=SPLITS, N=1024)


def _ranks(ranks: int) -> int:
    """Return the ranks that a tile has: Triton's `tl.dot` requires a power of two, 16 at least."""
    return max(16, triton.next_power_of_2(ranks))


def _per_split(rows: int) -> int:
    """Return the rows of a split, a multiple of those of a tile."""
    return _ROWS * triton.cdiv(rows, _ROWS * SPLITS)

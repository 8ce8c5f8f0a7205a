"""Triton kernels for everything in a block between its large GEMMs: norms, GELU, dropout and LoRA's thin GEMMs.

cuBLAS computes the large GEMMs, activations [rows, in] times a frozen weight [out, in], near the peak of the Tensor
Cores. Around each of them plain PyTorch would launch a norm or GELU, a dropout, LoRA's down-projection, its
up-projection and an addition, and as many again for the backward pass. All are bound by memory bandwidth: each reads
and writes the whole activation, [rows, width] with some 24,000 rows, for a few operations per element. Here one kernel
does what lies between two GEMMs in a single pass, so an activation is read once or twice and written once. Dropout
masks and the outputs of norms are recomputed from a few bytes per row rather than stored.

Tiles. Activations are row-major; `rows` counts the positions of all clips in the micro-batch. A program instance works
on tiles of M rows and N columns, in registers:

    kernel                grid                      a program instance computes
    layer_norm            [rows / M]                M whole rows; N is the power of two that covers the width
    layer_norm_grad       [rows / M]                the same
    down                  [rows / M]                h of M rows: loops over the width in tiles [M, N]
    up_grad               [out / N, splits]         N columns of grad_b over one split of the rows, in tiles [M, N]
    down_grad             [width / N, splits]       N columns of dx and of grad_a over one split of the rows
    add_splits            [total / N]               N entries of the summed gradients
    quantize              [rows]                    one whole row
    join_heads            [rows / M, width / N]     one tile [M, N] of q, k and v each
    add_up                [rows / M, width / N]     one tile [M, N] of the output
    cross_attention       [length / M, B · heads]   M queries of one head, over the whole text
    cross_attention_grad  [B · heads]               all queries of one head, in tiles of M

Loads beyond `rows`, `width` or R are masked and give 0, so that a tile may overhang. R is the number of ranks of a
layer's adapters, RANKS the tile that covers them: at least 16 and a power of two, as `tl.dot` requires.

Split-K. grad_a [R, width] and grad_b [out, R] are sums over all rows, a long reduction with a small result: one program
instance per output tile would leave most SMs idle. The rows are therefore cut into splits, each program instance writes
the partial sum of one split, and `add_splits_kernel` adds the partial sums in a fixed order. No kernel uses atomics, so
that equal inputs give equal bits. Products are accumulated in fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from musicgen_core.training.compute.dropout import _MULTIPLIERS

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
FIRST, SECOND = (tl.constexpr(value) for value in _MULTIPLIERS)


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """Return `dropout.mix` of x."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * FIRST
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * SECOND
    return x ^ ((x >> 16) & 0xFFFF)


@triton.jit
def _keep(seeds, columns, threshold):  # type: ignore[no-untyped-def]
    """Return the mask [M, N] of `dropout.keep` for seeds [M] and columns [N]."""
    return (seeds[:, None] ^ _mix(columns)[None, :]) * (_mix(seeds) | 1)[:, None] >= threshold


@triton.jit
def _load(x, row, column, rows, width, stride):  # type: ignore[no-untyped-def]
    """Load the tile [M, N] at row [M] and column [N] of x [rows, width]; 0 where it overhangs."""
    address = x + row[:, None].to(tl.int64) * stride + column[None, :]
    return tl.load(address, mask=(row < rows)[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def _store(x, values, row, column, rows, width, stride):  # type: ignore[no-untyped-def]
    """Store the tile `values` [M, N] at row [M] and column [N] of x [rows, width]."""
    address = x + row[:, None].to(tl.int64) * stride + column[None, :]
    tl.store(address, values.to(x.dtype.element_ty), mask=(row < rows)[:, None] & (column < width)[None, :])


@triton.jit
def _normal(x):  # type: ignore[no-untyped-def]
    """Return the standard normal distribution's CDF and PDF at x, off by 1e-7 at most; erf takes three times longer.

    Source: Abramowitz & Stegun 1964, 26.2.17.
    """
    if INTERPRETED:
        t = 1.0 / (1.0 + 0.2316419 * tl.abs(x))
        pdf = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        t = libdevice.fast_dividef(1.0, 1.0 + 0.2316419 * tl.abs(x))
        pdf = 0.3989422804014327 * libdevice.fast_expf(-0.5 * x * x)
    tail = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = pdf * tail
    return tl.where(x > 0, 1.0 - tail, tail), pdf


@triton.jit
def _store_quantized(x, values, scales, row, column, rows, width):  # type: ignore[no-untyped-def]
    """Store `fp8.quantize_rows` of whole rows x [M, N]: values, and one scale per row."""
    scale = tl.maximum(tl.max(tl.abs(x), 1), 1e-12) / 448.0
    tl.store(scales + row, scale, mask=row < rows)
    _store(values, x / scale[:, None], row, column, rows, width, width)


@triton.jit
def layer_norm_kernel(  # type: ignore[no-untyped-def]
    x, out, values, scales, gamma, beta, means, rstds, rows, eps,
    width: tl.constexpr, stride: tl.constexpr, M: tl.constexpr, N: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Store the layer norm of x [rows, width ≤ N] in the first columns of out [rows, stride].

    Each row is read once; its mean and reciprocal standard deviation are kept for the backward pass, in means and
    rstds [rows]. With FP8 the result is also quantized, into values [rows, width] and scales [rows].
    """
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.arange(0, N)
    tile = _load(x, row, column, rows, width, width).to(tl.float32)
    mean = tl.sum(tile, 1) / width
    centred = tl.where((column < width)[None, :], tile - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / width + eps)
    weight = tl.load(gamma + column, mask=column < width, other=0.0).to(tl.float32)
    bias = tl.load(beta + column, mask=column < width, other=0.0).to(tl.float32)
    y = (centred * rstd[:, None] * weight + bias).to(x.dtype.element_ty)
    _store(out, y, row, column, rows, width, stride)
    if FP8:
        _store_quantized(y.to(tl.float32), values, scales, row, column, rows, width)
    tl.store(means + row, mean, mask=row < rows)
    tl.store(rstds + row, rstd, mask=row < rows)


@triton.jit
def layer_norm_grad_kernel(  # type: ignore[no-untyped-def]
    x, grad, gamma, means, rstds, residual, dx, values, scales, rows,
    width: tl.constexpr, M: tl.constexpr, N: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Store dx = residual + the gradient of a layer norm w.r.t. its input x, all [rows, width ≤ N].

    grad is the gradient of `layer_norm_kernel`'s output. The normalised rows are recomputed from x, means and rstds.
    With FP8 dx is also quantized, for the GEMM that reads it next.
    """
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.arange(0, N)
    mean = tl.load(means + row, mask=row < rows, other=0.0)[:, None]
    rstd = tl.load(rstds + row, mask=row < rows, other=0.0)[:, None]
    normed = (_load(x, row, column, rows, width, width).to(tl.float32) - mean) * rstd
    weight = tl.load(gamma + column, mask=column < width, other=0.0).to(tl.float32)
    grad_normed = _load(grad, row, column, rows, width, width).to(tl.float32) * weight  # zero beyond the width
    mean_grad = (tl.sum(grad_normed, 1) / width)[:, None]
    mean_grad_x = (tl.sum(grad_normed * normed, 1) / width)[:, None]
    added = _load(residual, row, column, rows, width, width).to(tl.float32)
    grad_x = (added + (grad_normed - mean_grad - normed * mean_grad_x) * rstd).to(x.dtype.element_ty)
    _store(dx, grad_x, row, column, rows, width, width)
    if FP8:
        _store_quantized(grad_x.to(tl.float32), values, scales, row, column, rows, width)


@triton.jit
def down_kernel(  # type: ignore[no-untyped-def]
    x, out, h, a, dropout_seeds, rows, threshold, scale,
    width: tl.constexpr, x_stride: tl.constexpr, stride: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Store [y, h, 0] in out [rows, stride], the operand of the next GEMM, and h on its own.

    h = scale · dropout(y) aᵀ is LoRA's down-projection, a [R, width]. With KIND gelu, y is gelu(x); with none, y is x;
    with norm, x is out itself and already holds y. A program instance loops over the width of its M rows: it loads a
    tile [M, N] of x and one [RANKS, N] of a, stores y, applies the dropout mask and adds the tile's product to h in
    registers. x is thus read once, and neither the mask nor the dropped activation reaches memory.
    """
    row = tl.program_id(0) * M + tl.arange(0, M)
    seed = tl.load(dropout_seeds + row, mask=row < rows, other=0)
    rank = tl.arange(0, RANKS)
    acc = tl.zeros((M, RANKS), dtype=tl.float32)
    for start in range(0, width, N):
        column = start + tl.arange(0, N)
        y = _load(x, row, column, rows, width, x_stride)
        if KIND == "gelu":
            z = y.to(tl.float32)
            cdf, _pdf = _normal(z)
            y = (z * cdf).to(x.dtype.element_ty)
        if KIND != "norm":
            _store(out, y, row, column, rows, width, stride)
        if DROP:
            y = tl.where(_keep(seed, column, threshold), y, 0.0).to(x.dtype.element_ty)
        weights = _load(a, rank, column, R, width, width)
        acc += tl.dot(y, tl.trans(weights), input_precision="ieee")
    _store(out + width, acc * scale, row, rank, rows, stride - width, stride)
    _store(h, acc * scale, row, rank, rows, stride - width, stride - width)


@triton.jit
def up_grad_kernel(  # type: ignore[no-untyped-def]
    grad, h, out, rows, per_split, scale,
    part: tl.constexpr, parts: tl.constexpr, h_stride: tl.constexpr, total: tl.constexpr,
    R: tl.constexpr, RANKS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Store grad_b = scale · gradᵀ h, one partial sum per split of the rows; out [splits, total], fp32.

    grad is [rows, parts · part]. The packed layers (q, k and v) are parts of its columns, and each has its own R
    columns of h. A program instance keeps [RANKS, N] of the result in registers while it passes over its rows.
    """
    tiles = tl.cdiv(part, N)
    index = tl.program_id(0) // tiles
    within = tl.program_id(0) % tiles * N + tl.arange(0, N)
    split = tl.program_id(1)
    rank = tl.arange(0, RANKS)
    acc = tl.zeros((RANKS, N), dtype=tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, rows), M):
        row = start + tl.arange(0, M)
        tile = _load(grad + index * part, row, within, rows, part, part * parts)
        ranks = _load(h + index * R, row, rank, rows, R, h_stride)
        acc += tl.dot(tl.trans(ranks), tile, input_precision="ieee")
    address = out + split * total + (index * part + within)[None, :] * R + rank[:, None]
    tl.store(address, acc * scale, mask=(within < part)[None, :] & (rank < R)[:, None])


@triton.jit
def down_grad_kernel(  # type: ignore[no-untyped-def]
    x, grad_yh, a, dropout_seeds, gamma, beta, means, rstds, dx, h, out_a, out_b, rows, per_split, threshold, scale,
    b_scale,
    width: tl.constexpr, stride: tl.constexpr, h_stride: tl.constexpr, total: tl.constexpr,
    R: tl.constexpr, RANKS: tl.constexpr, R_B: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    KIND: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Backward pass of `down_kernel`, from grad_yh [rows, stride], which holds [grad_y, grad_h] of its output [y, h].

    dx is the gradient w.r.t. x, or w.r.t. y if KIND is norm. out_a [splits, total] gets the partial sums of
    grad_a = scale · grad_hᵀ dropout(y). With KIND gelu, x is the output of an earlier layer, and its
    grad_b = b_scale · dxᵀ h is taken in the same pass, into out_b: dx is in registers then and is not read again.

    A program instance owns N columns and one split of the rows. For each tile [M, N] it recomputes y (norm or GELU) and
    the dropout mask, adds LoRA's gradient grad_h a to grad_y, and accumulates both weight gradients in registers. The
    activation and its gradient are read once and dx is written once.
    """
    column = tl.program_id(0) * N + tl.arange(0, N)
    split = tl.program_id(1)
    rank = tl.arange(0, RANKS)
    weights = _load(a, rank, column, R, width, width)
    weight = tl.zeros((N,), dtype=tl.float32)
    bias = weight
    if KIND == "norm":
        weight = tl.load(gamma + column, mask=column < width, other=0.0).to(tl.float32)
        bias = tl.load(beta + column, mask=column < width, other=0.0).to(tl.float32)
    grad_a = tl.zeros((RANKS, N), dtype=tl.float32)
    grad_b = tl.zeros((RANKS, N), dtype=tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, rows), M):
        row = start + tl.arange(0, M)
        mask = row < rows
        y = _load(x, row, column, rows, width, width)
        grad_y = _load(grad_yh, row, column, rows, width, stride)  # here: Triton pipelines loads that feed a tl.dot
        grad_h = _load(grad_yh + width, row, rank, rows, R, stride)
        if KIND == "norm":
            mean = tl.load(means + row, mask=mask, other=0.0)
            rstd = tl.load(rstds + row, mask=mask, other=0.0)
            y = ((y.to(tl.float32) - mean[:, None]) * rstd[:, None] * weight + bias).to(x.dtype.element_ty)
        gelu_grad = 1.0
        if KIND == "gelu":
            z = y.to(tl.float32)
            cdf, pdf = _normal(z)
            y = (z * cdf).to(x.dtype.element_ty)
            gelu_grad = cdf + z * pdf
        grad_dropped = tl.dot(grad_h, weights, input_precision="ieee") * scale
        if DROP:
            kept = _keep(tl.load(dropout_seeds + row, mask=mask, other=0), column, threshold)
            y = tl.where(kept, y, 0.0).to(x.dtype.element_ty)
            grad_dropped = tl.where(kept, grad_dropped, 0.0)
        grad_a += tl.dot(tl.trans(grad_h), y, input_precision="ieee")
        grad = ((grad_y.to(tl.float32) + grad_dropped) * gelu_grad).to(x.dtype.element_ty)
        _store(dx, grad, row, column, rows, width, width)
        if KIND == "gelu":
            previous_h = _load(h, row, rank, rows, R_B, h_stride)
            grad_b += tl.dot(tl.trans(previous_h), grad, input_precision="ieee")
    address = out_a + split * total + rank[:, None] * width + column[None, :]
    tl.store(address, grad_a * scale, mask=(rank < R)[:, None] & (column < width)[None, :])
    if KIND == "gelu":
        address = out_b + split * total + column[None, :] * R_B + rank[:, None]
        tl.store(address, grad_b * b_scale, mask=(rank < R_B)[:, None] & (column < width)[None, :])


@triton.jit
def add_splits_kernel(sums, parts, total, SPLITS: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add parts [SPLITS, total] to sums [total], one split after the other: the same bits every time."""
    index = (tl.program_id(0) * N + tl.arange(0, N)).to(tl.int64)
    value = tl.load(sums + index, mask=index < total, other=0.0)
    for split in range(SPLITS):
        value += tl.load(parts + split * total.to(tl.int64) + index, mask=index < total, other=0.0)
    tl.store(sums + index, value, mask=index < total)


@triton.jit
def quantize_kernel(x, values, scales, rows, stride, width: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store `fp8.quantize_rows` of x [rows, width ≤ N], one row per program instance."""
    row, column = tl.program_id(0) + tl.arange(0, 1), tl.arange(0, N)
    tile = _load(x, row, column, rows, width, stride).to(tl.float32)
    _store_quantized(tile, values, scales, row, column, rows, width)


@triton.jit
def join_heads_kernel(  # type: ignore[no-untyped-def]
    q, k, v, out, rows, length, clip_stride, head_stride, row_stride,
    width: tl.constexpr, HEAD: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Store q, k and v, each [B, heads, S, HEAD] of the same strides, side by side in out [B · S, 3 width]."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    row_offset = (row // length).to(tl.int64) * clip_stride + (row % length) * row_stride
    offset = row_offset[:, None] + (column // HEAD * head_stride + column % HEAD)[None, :]
    mask = (row < rows)[:, None] & (column < width)[None, :]
    _store(out, tl.load(q + offset, mask=mask), row, column, rows, width, 3 * width)
    _store(out + width, tl.load(k + offset, mask=mask), row, column, rows, width, 3 * width)
    _store(out + 2 * width, tl.load(v + offset, mask=mask), row, column, rows, width, 3 * width)


@triton.jit
def add_up_kernel(  # type: ignore[no-untyped-def]
    out, h, up, residual, rows,
    width: tl.constexpr, h_stride: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Add LoRA's update h upᵀ, and the residual if there is one, to out [rows, width] in place; up [width, R]."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    rank = tl.arange(0, RANKS)
    weights = _load(up, column, rank, width, R, R)
    total = tl.dot(_load(h, row, rank, rows, R, h_stride), tl.trans(weights), input_precision="ieee")
    total += _load(out, row, column, rows, width, width).to(tl.float32)
    if RESIDUAL:
        total += _load(residual, row, column, rows, width, width).to(tl.float32)
    _store(out, total, row, column, rows, width, width)


@triton.jit
def cross_attention_kernel(  # type: ignore[no-untyped-def]
    q, kv, attend, out, length, text_length, scale,
    width: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, M: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Store `blocks.cross_attention` of M queries of one head.

    q and out are [B · length, width], kv is [B · text_length, 2 width] with keys in the first half of its columns.
    The text is short, so keys and values [L, HEAD] and the whole score tile [M, L] stay on the SM: the softmax needs no
    running maximum, and scores never reach memory. attend [B, text_length] masks the padding of texts.
    """
    clip, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    row = tl.program_id(0) * M + tl.arange(0, M)
    token, column = tl.arange(0, L), tl.arange(0, HEAD)
    q += clip.to(tl.int64) * length * width + head * HEAD
    out += clip.to(tl.int64) * length * width + head * HEAD
    kv += clip.to(tl.int64) * text_length * 2 * width + head * HEAD
    keys = _load(kv, token, column, text_length, HEAD, 2 * width)
    values = _load(kv + width, token, column, text_length, HEAD, 2 * width)
    mask = tl.load(attend + clip * text_length + token, mask=token < text_length, other=0) != 0
    queries = _load(q, row, column, length, HEAD, width)
    weights = _softmax(tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale, mask)
    attended = tl.dot(weights.to(q.dtype.element_ty), values, input_precision="ieee")
    _store(out, attended, row, column, length, HEAD, width)


@triton.jit
def _softmax(scores, mask):  # type: ignore[no-untyped-def]
    """Return the softmax of scores [M, L] over the columns where mask [L] is set."""
    scores = tl.where(mask[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def cross_attention_grad_kernel(  # type: ignore[no-untyped-def]
    q, kv, attend, grad, dq, dkv, length, text_length, scale,
    width: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, M: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Store the gradients dq and dkv, shaped as q and kv, from that of `cross_attention_kernel`'s output.

    A program instance owns one head of one clip: it passes over the queries in tiles of M, recomputes their weights,
    stores dq, and accumulates the head's dk and dv [L, HEAD] in registers, so that no sum crosses program instances.
    """
    clip, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    token, column = tl.arange(0, L), tl.arange(0, HEAD)
    q_offset = clip.to(tl.int64) * length * width + head * HEAD
    kv_offset = clip.to(tl.int64) * text_length * 2 * width + head * HEAD
    keys = _load(kv + kv_offset, token, column, text_length, HEAD, 2 * width)
    values = _load(kv + kv_offset + width, token, column, text_length, HEAD, 2 * width)
    mask = tl.load(attend + clip * text_length + token, mask=token < text_length, other=0) != 0
    grad_keys = tl.zeros((L, HEAD), dtype=tl.float32)
    grad_values = tl.zeros((L, HEAD), dtype=tl.float32)
    for start in range(0, length, M):
        row = start + tl.arange(0, M)
        queries = _load(q + q_offset, row, column, length, HEAD, width)
        grad_out = _load(grad + q_offset, row, column, length, HEAD, width)
        weights = _softmax(tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale, mask)
        grad_weights = tl.dot(grad_out, tl.trans(values), input_precision="ieee")
        grad_scores = weights * (grad_weights - tl.sum(weights * grad_weights, 1)[:, None]) * scale
        grad_scores = grad_scores.to(q.dtype.element_ty)
        grad_values += tl.dot(tl.trans(weights.to(q.dtype.element_ty)), grad_out, input_precision="ieee")
        grad_keys += tl.dot(tl.trans(grad_scores), queries, input_precision="ieee")
        grad_queries = tl.dot(grad_scores, keys, input_precision="ieee")
        _store(dq + q_offset, grad_queries, row, column, length, HEAD, width)
    _store(dkv + kv_offset, grad_keys, token, column, text_length, HEAD, 2 * width)
    _store(dkv + kv_offset + width, grad_values, token, column, text_length, HEAD, 2 * width)

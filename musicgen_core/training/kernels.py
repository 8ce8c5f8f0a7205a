"""Triton kernels for everything in a block between its large products: norms, GELU, dropout and LoRA's thin products.

Each reads its inputs from memory once or twice and writes once. None adds atomically: results are the same every time.
Activations are [rows, width]; R is the number of LoRA's ranks, RANKS as many as the matrix units want.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from musicgen_core.training.dropout import _MULTIPLIERS

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
FIRST, SECOND = (tl.constexpr(value) for value in _MULTIPLIERS)


@triton.jit
def _mix(x):  # type: ignore[no-untyped-def]
    """`dropout.mix`."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * FIRST
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * SECOND
    return x ^ ((x >> 16) & 0xFFFF)


@triton.jit
def _keep(keys, columns, threshold):  # type: ignore[no-untyped-def]
    """`dropout.keep` of [M, N] with keys [M] and columns [N]."""
    return (keys[:, None] ^ _mix(columns)[None, :]) * (_mix(keys) | 1)[:, None] >= threshold


@triton.jit
def _load(x, row, column, rows, width, stride):  # type: ignore[no-untyped-def]
    place = x + row[:, None].to(tl.int64) * stride + column[None, :]
    return tl.load(place, mask=(row < rows)[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def _store(x, values, row, column, rows, width, stride):  # type: ignore[no-untyped-def]
    place = x + row[:, None].to(tl.int64) * stride + column[None, :]
    tl.store(place, values.to(x.dtype.element_ty), mask=(row < rows)[:, None] & (column < width)[None, :])


@triton.jit
def _normal(x):  # type: ignore[no-untyped-def]
    """The normal distribution's cumulative function and density, off by 1e-7 at most; erf takes three times longer.

    Source: Abramowitz & Stegun 1964, 26.2.17.
    """
    if INTERPRETED:
        t = 1.0 / (1.0 + 0.2316419 * tl.abs(x))
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
    else:
        t = libdevice.fast_dividef(1.0, 1.0 + 0.2316419 * tl.abs(x))
        density = 0.3989422804014327 * libdevice.fast_expf(-0.5 * x * x)
    tail = t * (0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429))))
    tail = density * tail
    return tl.where(x > 0, 1.0 - tail, tail), density


@triton.jit
def _store_quantized(x, values, scales, row, column, rows, width):  # type: ignore[no-untyped-def]
    """`fp8.quantize` of whole rows."""
    scale = tl.maximum(tl.max(tl.abs(x), 1), 1e-12) / 448.0
    tl.store(scales + row, scale, mask=row < rows)
    _store(values, x / scale[:, None], row, column, rows, width, width)


@triton.jit
def norm_kernel(  # type: ignore[no-untyped-def]
    x, out, values, scales, gamma, beta, mean_of, rstd_of, rows, eps,
    width: tl.constexpr, stride: tl.constexpr, M: tl.constexpr, N: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Layer norm of x [rows, width ≤ N] into out [rows, stride], with FP8 also quantized."""
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
    tl.store(mean_of + row, mean, mask=row < rows)
    tl.store(rstd_of + row, rstd, mask=row < rows)


@triton.jit
def norm_grad_kernel(  # type: ignore[no-untyped-def]
    x, grad, gamma, mean_of, rstd_of, residual, dx, values, scales, rows,
    width: tl.constexpr, M: tl.constexpr, N: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """dx = residual + the gradient of x from that of `norm_kernel`'s output, all [rows, width ≤ N]; also quantized."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.arange(0, N)
    mean = tl.load(mean_of + row, mask=row < rows, other=0.0)[:, None]
    rstd = tl.load(rstd_of + row, mask=row < rows, other=0.0)[:, None]
    normed = (_load(x, row, column, rows, width, width).to(tl.float32) - mean) * rstd
    weight = tl.load(gamma + column, mask=column < width, other=0.0).to(tl.float32)
    along = _load(grad, row, column, rows, width, width).to(tl.float32) * weight  # zero beyond the width
    mean_grad = (tl.sum(along, 1) / width)[:, None]
    along_x = (tl.sum(along * normed, 1) / width)[:, None]
    added = _load(residual, row, column, rows, width, width).to(tl.float32)
    of_x = (added + (along - mean_grad - normed * along_x) * rstd).to(x.dtype.element_ty)
    _store(dx, of_x, row, column, rows, width, width)
    if FP8:
        _store_quantized(of_x.to(tl.float32), values, scales, row, column, rows, width)


@triton.jit
def down_kernel(  # type: ignore[no-untyped-def]
    x, out, h, a, keys, rows, threshold, scale,
    width: tl.constexpr, x_stride: tl.constexpr, stride: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """[y, h, 0] in out [rows, stride], and h on its own, where h = scale · drop(y) aᵀ.

    y is gelu(x), or x where KIND is none; where it is norm, y is in x already, and x is out.
    """
    row = tl.program_id(0) * M + tl.arange(0, M)
    key = tl.load(keys + row, mask=row < rows, other=0)
    rank = tl.arange(0, RANKS)
    product = tl.zeros((M, RANKS), dtype=tl.float32)
    for start in range(0, width, N):
        column = start + tl.arange(0, N)
        y = _load(x, row, column, rows, width, x_stride)
        if KIND == "gelu":
            z = y.to(tl.float32)
            below, _density = _normal(z)
            y = (z * below).to(x.dtype.element_ty)
        if KIND != "norm":
            _store(out, y, row, column, rows, width, stride)
        if DROP:
            y = tl.where(_keep(key, column, threshold), y, 0.0).to(x.dtype.element_ty)
        weights = _load(a, rank, column, R, width, width)
        product += tl.dot(y, tl.trans(weights), input_precision="ieee")
    _store(out + width, product * scale, row, rank, rows, stride - width, stride)
    _store(h, product * scale, row, rank, rows, stride - width, stride - width)


@triton.jit
def up_grad_kernel(  # type: ignore[no-untyped-def]
    grad, h, out, rows, per_split, scale,
    part: tl.constexpr, parts: tl.constexpr, h_stride: tl.constexpr, total: tl.constexpr,
    R: tl.constexpr, RANKS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Gradient of b: scale · gradᵀ h, of each part of grad's columns with its own ranks; out [splits, total], fp32."""
    tiles = tl.cdiv(part, N)
    which = tl.program_id(0) // tiles
    within = tl.program_id(0) % tiles * N + tl.arange(0, N)
    split = tl.program_id(1)
    rank = tl.arange(0, RANKS)
    product = tl.zeros((RANKS, N), dtype=tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, rows), M):
        row = start + tl.arange(0, M)
        tile = _load(grad + which * part, row, within, rows, part, part * parts)
        ranks = _load(h + which * R, row, rank, rows, R, h_stride)
        product += tl.dot(tl.trans(ranks), tile, input_precision="ieee")
    place = out + split * total + (which * part + within)[None, :] * R + rank[:, None]
    tl.store(place, product * scale, mask=(within < part)[None, :] & (rank < R)[:, None])


@triton.jit
def down_grad_kernel(  # type: ignore[no-untyped-def]
    x, both, a, keys, gamma, beta, mean_of, rstd_of, dx, h, out_a, out_b, rows, per_split, threshold, scale, b_scale,
    width: tl.constexpr, stride: tl.constexpr, h_stride: tl.constexpr, total: tl.constexpr,
    R: tl.constexpr, RANKS: tl.constexpr, R_B: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    KIND: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Backwards through `down_kernel`, from both [rows, stride] = [gradient of y as of out, of h].

    out_a [splits, total]: the gradient of a, scale · (of h)ᵀ drop(y). dx: the gradient of x, or of y where KIND is
    norm. With gelu also out_b: b_scale · dxᵀ h, the gradient of b in the layer that made x.
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
    of_a = tl.zeros((RANKS, N), dtype=tl.float32)
    of_b = tl.zeros((RANKS, N), dtype=tl.float32)
    for start in range(split * per_split, tl.minimum((split + 1) * per_split, rows), M):
        row = start + tl.arange(0, M)
        there = row < rows
        y = _load(x, row, column, rows, width, width)
        of_y = _load(both, row, column, rows, width, stride)  # here: loads ahead of a product are made ahead of time
        of_h = _load(both + width, row, rank, rows, R, stride)
        if KIND == "norm":
            mean = tl.load(mean_of + row, mask=there, other=0.0)
            rstd = tl.load(rstd_of + row, mask=there, other=0.0)
            y = ((y.to(tl.float32) - mean[:, None]) * rstd[:, None] * weight + bias).to(x.dtype.element_ty)
        slope = 1.0
        if KIND == "gelu":
            z = y.to(tl.float32)
            below, density = _normal(z)
            y = (z * below).to(x.dtype.element_ty)
            slope = below + z * density
        through = tl.dot(of_h, weights, input_precision="ieee") * scale
        if DROP:
            kept = _keep(tl.load(keys + row, mask=there, other=0), column, threshold)
            y = tl.where(kept, y, 0.0).to(x.dtype.element_ty)
            through = tl.where(kept, through, 0.0)
        of_a += tl.dot(tl.trans(of_h), y, input_precision="ieee")
        grad = ((of_y.to(tl.float32) + through) * slope).to(x.dtype.element_ty)
        _store(dx, grad, row, column, rows, width, width)
        if KIND == "gelu":
            earlier = _load(h, row, rank, rows, R_B, h_stride)
            of_b += tl.dot(tl.trans(earlier), grad, input_precision="ieee")
    place = out_a + split * total + rank[:, None] * width + column[None, :]
    tl.store(place, of_a * scale, mask=(rank < R)[:, None] & (column < width)[None, :])
    if KIND == "gelu":
        place = out_b + split * total + column[None, :] * R_B + rank[:, None]
        tl.store(place, of_b * b_scale, mask=(rank < R_B)[:, None] & (column < width)[None, :])


@triton.jit
def add_splits_kernel(sums, parts, total, SPLITS: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """sums [total] += parts [SPLITS, total], in order."""
    place = (tl.program_id(0) * N + tl.arange(0, N)).to(tl.int64)
    value = tl.load(sums + place, mask=place < total, other=0.0)
    for split in range(SPLITS):
        value += tl.load(parts + split * total.to(tl.int64) + place, mask=place < total, other=0.0)
    tl.store(sums + place, value, mask=place < total)


@triton.jit
def quantize_kernel(x, values, scales, rows, stride, width: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """`fp8.quantize` of x [rows, width ≤ N], a row a program."""
    row, column = tl.program_id(0) + tl.arange(0, 1), tl.arange(0, N)
    tile = _load(x, row, column, rows, width, stride).to(tl.float32)
    _store_quantized(tile, values, scales, row, column, rows, width)


@triton.jit
def join_heads_kernel(  # type: ignore[no-untyped-def]
    q, k, v, out, rows, length, clip_stride, head_stride, row_stride,
    width: tl.constexpr, HEAD: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """out [B · S, 3 width] from three [B, heads, S, HEAD] of the same strides."""
    row = tl.program_id(0) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    of_row = (row // length).to(tl.int64) * clip_stride + (row % length) * row_stride
    place = of_row[:, None] + (column // HEAD * head_stride + column % HEAD)[None, :]
    there = (row < rows)[:, None] & (column < width)[None, :]
    _store(out, tl.load(q + place, mask=there), row, column, rows, width, 3 * width)
    _store(out + width, tl.load(k + place, mask=there), row, column, rows, width, 3 * width)
    _store(out + 2 * width, tl.load(v + place, mask=there), row, column, rows, width, 3 * width)


@triton.jit
def add_up_kernel(  # type: ignore[no-untyped-def]
    out, h, up, residual, rows,
    width: tl.constexpr, h_stride: tl.constexpr, R: tl.constexpr, RANKS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    RESIDUAL: tl.constexpr,
):  # fmt: skip
    """out [rows, width] += h upᵀ (+ residual), up [width, R]."""
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
def attend_text_kernel(  # type: ignore[no-untyped-def]
    q, kv, attend, out, length, texts, scale,
    width: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, M: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """`blocks.attend_text` of M rows and one head: q, out [B · length, width], kv [B · texts, 2 width]."""
    clip, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
    row = tl.program_id(0) * M + tl.arange(0, M)
    word, column = tl.arange(0, L), tl.arange(0, HEAD)
    q += clip.to(tl.int64) * length * width + head * HEAD
    out += clip.to(tl.int64) * length * width + head * HEAD
    kv += clip.to(tl.int64) * texts * 2 * width + head * HEAD
    keys = _load(kv, word, column, texts, HEAD, 2 * width)
    values = _load(kv + width, word, column, texts, HEAD, 2 * width)
    there = tl.load(attend + clip * texts + word, mask=word < texts, other=0) != 0
    queries = _load(q, row, column, length, HEAD, width)
    weights = _softmax(tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale, there)
    attended = tl.dot(weights.to(q.dtype.element_ty), values, input_precision="ieee")
    _store(out, attended, row, column, length, HEAD, width)


@triton.jit
def _softmax(scores, there):  # type: ignore[no-untyped-def]
    scores = tl.where(there[None, :], scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, 1)[:, None])
    return weights / tl.sum(weights, 1)[:, None]


@triton.jit
def attend_text_grad_kernel(  # type: ignore[no-untyped-def]
    q, kv, attend, grad, dq, dkv, length, texts, scale,
    width: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, M: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """dq and dkv, shaped as q and kv, from the gradient of `attend_text_kernel`'s output; all rows of a head."""
    clip, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    word, column = tl.arange(0, L), tl.arange(0, HEAD)
    of_rows = clip.to(tl.int64) * length * width + head * HEAD
    of_words = clip.to(tl.int64) * texts * 2 * width + head * HEAD
    keys = _load(kv + of_words, word, column, texts, HEAD, 2 * width)
    values = _load(kv + of_words + width, word, column, texts, HEAD, 2 * width)
    there = tl.load(attend + clip * texts + word, mask=word < texts, other=0) != 0
    of_keys = tl.zeros((L, HEAD), dtype=tl.float32)
    of_values = tl.zeros((L, HEAD), dtype=tl.float32)
    for start in range(0, length, M):
        row = start + tl.arange(0, M)
        queries = _load(q + of_rows, row, column, length, HEAD, width)
        given = _load(grad + of_rows, row, column, length, HEAD, width)
        weights = _softmax(tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale, there)
        of_weights = tl.dot(given, tl.trans(values), input_precision="ieee")
        of_scores = weights * (of_weights - tl.sum(weights * of_weights, 1)[:, None]) * scale
        of_scores = of_scores.to(q.dtype.element_ty)
        of_values += tl.dot(tl.trans(weights.to(q.dtype.element_ty)), given, input_precision="ieee")
        of_keys += tl.dot(tl.trans(of_scores), queries, input_precision="ieee")
        of_queries = tl.dot(of_scores, keys, input_precision="ieee")
        _store(dq + of_rows, of_queries, row, column, length, HEAD, width)
    _store(dkv + of_words, of_keys, word, column, texts, HEAD, 2 * width)
    _store(dkv + of_words + width, of_values, word, column, texts, HEAD, 2 * width)

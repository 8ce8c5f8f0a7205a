"""Triton kernels for one step of generation: few rows, so what counts is how fast weights and caches are read.

R rows are prompts under their texts, then the same prompts under the null condition. The residual stream is fp32. Sums
are split among programs and added up in a fixed order: results are the same every time.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def embed_kernel(  # type: ignore[no-untyped-def]
    sequence, position, tables, sinusoids, out, prompts, columns,
    CODEBOOKS: tl.constexpr, WORDS: tl.constexpr, D: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """out [R, D] from a column of sequence [prompts, CODEBOOKS, columns], through tables [CODEBOOKS, WORDS, D]."""
    row = tl.program_id(0)
    d = tl.arange(0, N)
    at = tl.load(position)
    total = tl.load(sinusoids + at * D + d, mask=d < D, other=0.0)
    for k in tl.static_range(CODEBOOKS):
        code = tl.load(sequence + ((row % prompts) * CODEBOOKS + k) * columns + at)
        total += tl.load(tables + (k * WORDS + code) * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + row * D + d, total, mask=d < D)


@triton.jit
def norm_kernel(  # type: ignore[no-untyped-def]
    x, parts, out, gamma, beta, rows, D: tl.constexpr, N: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """x [R, D] += the sum of parts [PARTS, R, D]; out: its layer norm, in 16 bits. A row a program."""
    row = tl.program_id(0)
    d = tl.arange(0, N)
    value = tl.load(x + row * D + d, mask=d < D, other=0.0)
    for part in tl.static_range(PARTS):
        value += tl.load(parts + (part * rows + row) * D + d, mask=d < D, other=0.0)
    if PARTS > 0:
        tl.store(x + row * D + d, value, mask=d < D)
    mean = tl.sum(value, 0) / D
    centred = tl.where(d < D, value - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / D + 1e-5)  # nn.LayerNorm's epsilon
    weight = tl.load(gamma + d, mask=d < D, other=0.0).to(tl.float32)
    bias = tl.load(beta + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + row * D + d, (centred * rstd * weight + bias).to(out.dtype.element_ty), mask=d < D)


@triton.jit
def linear_kernel(  # type: ignore[no-untyped-def]
    x, w, scales, out, caches, position, rows, positions,
    N: tl.constexpr, K: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr, STAGES: tl.constexpr,
    GELU: tl.constexpr, QKV: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """out [PARTS, R, N]: x [R, K] times w [N, K] transposed, in PARTS sums over K.

    GELU: of the result. SCALED: w is in 8 bits, each row times its scale. QKV: the first third of the result goes to
    out [R, N / 3], the others to caches [2, R, HEADS, positions, HEAD].
    """
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    there = (row < rows)[:, None]
    begin = tl.program_id(2) * (K // PARTS)
    product = tl.zeros((BM, BN), dtype=tl.float32)
    for start in tl.range(begin, begin + K // PARTS, BK, num_stages=STAGES):
        k = start + tl.arange(0, BK)
        tile = tl.load(x + row[:, None] * K + k[None, :], mask=there, other=0.0)
        weights = tl.load(w + column[:, None].to(tl.int64) * K + k[None, :])
        product += tl.dot(tile, tl.trans(weights.to(tile.dtype)), input_precision="ieee")
    if SCALED:
        product *= tl.load(scales + column)[None, :]
    if GELU:
        product = 0.5 * product * (1.0 + tl.erf(product * 0.7071067811865476))
    value = product.to(out.dtype.element_ty)
    width = N // 3
    which = (tl.program_id(0) * BN) // width  # the same for the whole tile
    if QKV and which == 0:
        tl.store(out + row[:, None] * width + column[None, :], value, mask=there)
    elif QKV:
        within = (column - which * width)[None, :]
        of_head = (row[:, None] * HEADS + within // HEAD).to(tl.int64) * positions + tl.load(position)
        cache = caches + (which - 1).to(tl.int64) * rows * width * positions
        tl.store(cache + of_head * HEAD + within % HEAD, value, mask=there)
    else:
        tl.store(out + (tl.program_id(2) * rows + row[:, None]) * N + column[None, :], value, mask=there)


@triton.jit
def attend_kernel(  # type: ignore[no-untyped-def]
    q, keys, values, lengths, position, out, totals, stats, positions, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
    OWN: tl.constexpr,
):  # fmt: skip
    """One query a row and head: q, the sum of [PARTS, R, HEADS · HEAD]; out [R, HEADS · HEAD].

    Keys and values are [R, HEADS, positions, HEAD].
    OWN: over everything up to position; else over the first lengths [R] of them. With SPLITS, totals
    [R · HEADS, SPLITS, HEAD] and stats [R · HEADS, SPLITS, 2] are written for `join_kernel`.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, HEAD)
    if OWN:  # noqa: SIM108 (one of the two is compiled)
        length = tl.load(position).to(tl.int32) + 1
    else:
        length = tl.load(lengths + head // HEADS)
    each = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    query = tl.zeros((HEAD,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        query += tl.load(q + (part * tl.num_programs(0) + head) * HEAD + d).to(tl.float32)
    query *= scale
    most = -1e30  # finite: a split may have nothing to look at
    weight = 0.0
    total = tl.zeros((HEAD,), dtype=tl.float32)
    begin = head.to(tl.int64) * positions * HEAD
    for start in range(split * each, tl.minimum(length, (split + 1) * each), BLOCK):
        at = start + tl.arange(0, BLOCK)
        place = begin + at[:, None] * HEAD + d[None, :]
        there = at < length
        key = tl.load(keys + place, mask=there[:, None], other=0.0).to(tl.float32)
        value = tl.load(values + place, mask=there[:, None], other=0.0).to(tl.float32)
        scores = tl.where(there, tl.sum(key * query[None, :], 1), -1e30)
        highest = tl.maximum(most, tl.max(scores, 0))
        shares = tl.exp(scores - highest)
        fading = tl.exp(most - highest)
        weight = weight * fading + tl.sum(shares, 0)
        total = total * fading + tl.sum(shares[:, None] * value, 0)
        most = highest
    if SPLITS == 1:
        tl.store(out + head * HEAD + d, (total / weight).to(out.dtype.element_ty))
    else:
        part = head * SPLITS + split
        tl.store(totals + part * HEAD + d, total)
        tl.store(stats + part * 2, most)
        tl.store(stats + part * 2 + 1, weight)


@triton.jit
def join_kernel(totals, stats, out, HEAD: tl.constexpr, SPLITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """out [R, HEADS · HEAD] from what the splits of `attend_kernel` left. A row and head a program."""
    head = tl.program_id(0)
    d, split = tl.arange(0, HEAD), tl.arange(0, SPLITS)
    most = tl.load(stats + (head * SPLITS + split) * 2)
    shares = tl.exp(most - tl.max(most, 0))
    weight = tl.sum(shares * tl.load(stats + (head * SPLITS + split) * 2 + 1), 0)
    total = tl.load(totals + (head * SPLITS + split)[:, None] * HEAD + d[None, :])
    tl.store(out + head * HEAD + d, (tl.sum(total * shares[:, None], 0) / weight).to(out.dtype.element_ty))

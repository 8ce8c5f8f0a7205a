"""Triton kernels for one step of generation: few rows, so what counts is how fast weights and caches are read.

R rows are prompts under their texts, then the same prompts under the null condition. The residual stream is fp32. Sums
are split among programs and added up in a fixed order: results are the same every time. SCALED: weights or caches are
in 8 bits, each row of them, or each head's key and value, times a scale of its own.
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
    x, w, scales, out, rows,
    N: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PARTS: tl.constexpr,
    STAGES: tl.constexpr, GELU: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """out [PARTS, R, N]: x [R, K] times w [N, K] transposed, in PARTS sums over K. GELU: of the result."""
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
    tl.store(out + (tl.program_id(2) * rows + row[:, None]) * N + column[None, :], value, mask=there)


@triton.jit
def _look(  # type: ignore[no-untyped-def]
    query, keys, values, key_scales, value_scales, begin, end,
    HEAD: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Attention's running softmax: largest score, sum of shares, and of shares times values.

    Keys and values are [positions, HEAD], of which those from begin to end are looked at.
    """
    d = tl.arange(0, HEAD)
    most, weight = tl.full((), -1e30, tl.float32), tl.zeros((), tl.float32)  # finite: there may be nothing to look at
    total = tl.zeros((HEAD,), tl.float32)
    for start in tl.range(begin, end, BLOCK, num_stages=2 if SCALED else 1):
        at = start + tl.arange(0, BLOCK)
        place = at[:, None] * HEAD + d[None, :]
        there = at < end
        key = tl.load(keys + place, mask=there[:, None], other=0)
        value = tl.load(values + place, mask=there[:, None], other=0)
        if SCALED:  # by way of bf16, which holds them exactly: quicker than straight to fp32
            key, value = key.to(tl.bfloat16), value.to(tl.bfloat16)
        key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.sum(key * query[None, :], 1)
        if SCALED:
            scores *= tl.load(key_scales + at, mask=there, other=0.0).to(tl.float32)
        scores = tl.where(there, scores, -1e30)
        highest = tl.maximum(most, tl.max(scores, 0))
        shares = tl.exp(scores - highest)
        fading = tl.exp(most - highest)
        weight = weight * fading + tl.sum(shares, 0)
        if SCALED:
            shares *= tl.load(value_scales + at, mask=there, other=0.0).to(tl.float32)
        total = total * fading + tl.sum(shares[:, None] * value, 0)
        most = highest
    return most, weight, total


@triton.jit
def _keep(x, cache, scales, place, HEAD: tl.constexpr, SCALED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Put x [HEAD] into its place of a cache."""
    d = tl.arange(0, HEAD)
    if SCALED:
        scale = (tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / 127).to(scales.dtype.element_ty)
        tl.store(scales + place, scale)
        x = tl.floor(x / scale.to(tl.float32) + 0.5)
        x = tl.minimum(tl.maximum(x, -127.0), 127.0)  # the scale was rounded
    tl.store(cache + place * HEAD + d, x.to(cache.dtype.element_ty))


@triton.jit
def attend_kernel(  # type: ignore[no-untyped-def]
    fresh, cache, scales, position, out, totals, stats, arrived, positions, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Self-attention of the newest position: out [R, HEADS · HEAD].

    Its query, key and value are fresh [R, 3, HEADS · HEAD]; the keys and values before it are in cache
    [2, R, HEADS, positions, HEAD] with scales [2, R, HEADS, positions], and these are put there, too. SPLITS programs
    share a row and head, through totals [R · HEADS, SPLITS, HEAD] and stats [R · HEADS, SPLITS, 2]; the last of them to
    be counted in arrived [R · HEADS], which is zero before and after, adds up.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, HEAD)
    mine = fresh + ((head // HEADS) * 3 * HEADS + head % HEADS) * HEAD + d
    query = tl.load(mine).to(tl.float32) * scale
    length = tl.load(position).to(tl.int32)
    each = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    of_keys = head.to(tl.int64) * positions
    of_values = of_keys + tl.num_programs(0).to(tl.int64) * positions
    most, weight, total = _look(
        query, cache + of_keys * HEAD, cache + of_values * HEAD, scales + of_keys, scales + of_values,
        split * each, tl.minimum(length, (split + 1) * each),
        HEAD, BLOCK, SCALED,
    )  # fmt: skip
    if split == SPLITS - 1:
        key = tl.load(mine + HEADS * HEAD).to(tl.float32)
        value = tl.load(mine + 2 * HEADS * HEAD).to(tl.float32)
        score = tl.sum(key * query, 0)
        highest = tl.maximum(most, score)
        share = tl.exp(score - highest)
        fading = tl.exp(most - highest)
        most, weight, total = highest, weight * fading + share, total * fading + share * value
        _keep(key, cache, scales, of_keys + length, HEAD, SCALED)
        _keep(value, cache, scales, of_values + length, HEAD, SCALED)
    if SPLITS == 1:
        tl.store(out + head * HEAD + d, (total / weight).to(out.dtype.element_ty))
    else:
        part = head * SPLITS + split
        tl.store(totals + part * HEAD + d, total)
        tl.store(stats + part * 2, most)
        tl.store(stats + part * 2 + 1, weight)
        tl.debug_barrier()  # all threads have written what is announced
        if tl.atomic_add(arrived + head, 1) == SPLITS - 1:
            splits = head * SPLITS + tl.arange(0, SPLITS)
            each_most = tl.load(stats + splits * 2, cache_modifier=".cg")  # past the L1, which may be older
            shares = tl.exp(each_most - tl.max(each_most, 0))
            sum_of_weights = tl.sum(shares * tl.load(stats + splits * 2 + 1, cache_modifier=".cg"), 0)
            parts = tl.load(totals + splits[:, None] * HEAD + d[None, :], cache_modifier=".cg")
            joined = tl.sum(parts * shares[:, None], 0) / sum_of_weights
            tl.store(out + head * HEAD + d, joined.to(out.dtype.element_ty))
            tl.store(arrived + head, 0)


@triton.jit
def attend_text_kernel(  # type: ignore[no-untyped-def]
    q, text, words, out, longest, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Cross-attention: q is the sum of [PARTS, R, HEADS · HEAD]; out [R, HEADS · HEAD], zero for a row without words.

    text [2, R, HEADS, longest, HEAD] is keys and values, of which the first words [R] count.
    """
    head = tl.program_id(0)
    d = tl.arange(0, HEAD)
    query = tl.zeros((HEAD,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        query += tl.load(q + (part * tl.num_programs(0) + head) * HEAD + d)
    keys = text + head.to(tl.int64) * longest * HEAD
    values = keys + tl.num_programs(0).to(tl.int64) * longest * HEAD
    _, weight, total = _look(
        query * scale, keys, values, keys, values, 0, tl.load(words + head // HEADS),
        HEAD, BLOCK, False,
    )  # fmt: skip
    # The likeliest word alone weighs 1.
    tl.store(out + head * HEAD + d, (total / tl.maximum(weight, 1.0)).to(out.dtype.element_ty))


@triton.jit
def _pivot(order, amounts, most):  # type: ignore[no-untyped-def]
    """The largest pivot at which the amounts whose order is no less come to more than most; 0 where none does."""
    pivot = tl.full((), 0, tl.int32)
    for bit in range(30):  # an order is the bits of a float up to 1
        higher = pivot | (1 << (29 - bit))
        enough = tl.sum(tl.where(order >= higher, amounts, 0.0), 0) > most
        pivot = tl.where(enough, higher, pivot)
    return pivot


@triton.jit
def choose_kernel(  # type: ignore[no-untyped-def]
    logits, noise, noise_prompt, noise_codebook, frames, position, sequence, prompts, columns, given,
    guidance, temperature, top_k, top_p,
    CODEBOOKS: tl.constexpr, WORDS: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    """The next column of sequence [prompts, CODEBOOKS, columns], as `Window.choose` fills it. A code a program.

    logits [R, CODEBOOKS, WORDS], WORDS a power of two; noise [prompts, CODEBOOKS, steps] with strides of its own, for a
    window has a part of it; frames [prompts]. Codes are not sorted: those that a sorted list would begin with are those
    at or above a pivot, which is searched for bit by bit. Where several are alike there, top-k and top-p keep them all.
    """
    prompt, codebook = tl.program_id(0), tl.program_id(1)
    of_code = prompt * CODEBOOKS + codebook
    code = tl.arange(0, WORDS)
    conditional = tl.load(logits + of_code * WORDS + code)
    unconditional = tl.load(logits + (prompts * CODEBOOKS + of_code) * WORDS + code)
    guided = unconditional + (conditional - unconditional) * guidance
    at = tl.load(position)
    if GREEDY:
        chosen = tl.argmax(guided, 0)
    else:
        guided /= temperature
        shares = tl.exp(guided - tl.max(guided, 0))
        shares /= tl.sum(shares, 0)
        order = shares.to(tl.int32, bitcast=True)
        least = tl.full((), 0, tl.int32)
        if top_p > 0:
            least = _pivot(order, shares, top_p)
        elif top_k > 0:
            least = _pivot(order, tl.full((WORDS,), 1.0, tl.float32), top_k - 1.0)
        shares = tl.where(order >= least, shares, 0.0)
        draw = tl.minimum(tl.load(noise + prompt * noise_prompt + codebook * noise_codebook + at), 0.9999998)
        threshold = draw * tl.sum(shares, 0)  # less than the sum, also when rounded
        found = _pivot(order, shares, threshold)
        before = tl.sum(tl.where(order > found, shares, 0.0), 0)
        alike = (order == found).to(tl.int32)
        share = tl.max(tl.where(order == found, shares, 0.0), 0)
        rank = tl.minimum(((threshold - before) / share).to(tl.int32), tl.sum(alike, 0) - 1)
        chosen = tl.sum(tl.where((tl.cumsum(alike, 0) == rank + 1) & (alike > 0), code, 0), 0)
    frame = at - codebook
    is_asked = (frame >= given) & (frame < tl.load(frames + prompt))
    tl.store(sequence + of_code * columns + at + 1, chosen.to(tl.int64), mask=is_asked)

"""Triton kernels for one step of generation.

A step reads every weight of the model once and the whole key-value cache once, for R rows of activations, from 2 up to
some tens. Its GEMMs do about R operations per weight, far fewer than the Tensor Cores could, so that the step takes
as long as memory bandwidth dictates. The kernels therefore aim at streaming weights and caches: everything else
(norms, GELU, residual additions, sampling) is fused into kernels that touch only the small activations, and each
reduction is split until all SMs have something to load.

Rows: R is twice the number of prompts, each prompt under its text and then, in the second half, under the negative
prompt or null condition of classifier-free guidance. The residual stream x [R, D] is fp32.

    kernel                    grid                     a program instance computes
    embed                     [R]                      x of one row: the sum of CODEBOOKS embeddings and the position
    add_norm                  [R]                      one row: adds split-K partial sums to x, then layer norm
    linear                    [N / BN, R / BM, PARTS]  a tile [BM, BN] of x Wᵀ over 1 / PARTS of the reduction
    decode_attention          [R · HEADS, SPLITS]      one head of one row over 1 / SPLITS of the positions
    decode_cross_attention    [R · HEADS]              one head of one row over its text
    sample                    [prompts, CODEBOOKS]     guidance, top-k or top-p, and one sampled code

Split-K: `linear` cuts its reduction into PARTS where a layer has too few output tiles for all SMs, and leaves the
partial sums [PARTS, R, N] to the next kernel, `add_norm` or `decode_cross_attention`, which reads them anyway. Partial
sums are added in a fixed order, so that equal inputs give equal bits.

SCALED: weights or caches are int8, with a scale per row of a weight, or per key and value of each head.

PREFIXED: the model takes a melody, and reads a prefix in front of the codes, a melody and a text, of a length of its
own in each row. There is no cross-attention then.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def embed_kernel(  # type: ignore[no-untyped-def]
    sequence, position, prefixes, tables, sinusoids, out, prompts, steps,
    CODEBOOKS: tl.constexpr, VOCAB: tl.constexpr, D: tl.constexpr, N: tl.constexpr, PREFIXED: tl.constexpr,
):  # fmt: skip
    """Store the embedding of step `position` of sequence [prompts, CODEBOOKS, steps] in out [R, D].

    tables is [CODEBOOKS, VOCAB, D]; sinusoids [positions, D] are added, after prefixes [R] of them if PREFIXED.
    """
    row = tl.program_id(0)
    d = tl.arange(0, N)
    at = tl.load(position)
    reached = at + tl.load(prefixes + row) if PREFIXED else at
    total = tl.load(sinusoids + reached * D + d, mask=d < D, other=0.0)
    for k in tl.static_range(CODEBOOKS):
        code = tl.load(sequence + ((row % prompts) * CODEBOOKS + k) * steps + at)
        total += tl.load(tables + (k * VOCAB + code) * D + d, mask=d < D, other=0.0).to(tl.float32)
    tl.store(out + row * D + d, total, mask=d < D)


@triton.jit
def add_norm_kernel(  # type: ignore[no-untyped-def]
    x, parts, out, gamma, beta, rows, D: tl.constexpr, N: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """Add the partial sums parts [PARTS, R, D] to the residual stream x [R, D], and store its layer norm in out [R, D].

    One row per program instance, which keeps it in registers between the two.
    """
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
    """Store x [R, K] times the transpose of w [N, K] in out [PARTS, R, N], as PARTS partial sums over K.

    A program instance streams tiles [BN, BK] of w, STAGES of them in flight, and multiplies each with BM rows of x. Up
    to 64 rows are one BM, so that each weight is read from memory exactly once. GELU applies to the result, which then
    has one part.
    """
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    row = tl.program_id(1) * BM + tl.arange(0, BM)
    mask = (row < rows)[:, None]
    begin = tl.program_id(2) * (K // PARTS)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in tl.range(begin, begin + K // PARTS, BK, num_stages=STAGES):
        k = start + tl.arange(0, BK)
        tile = tl.load(x + row[:, None] * K + k[None, :], mask=mask, other=0.0)
        weights = tl.load(w + column[:, None].to(tl.int64) * K + k[None, :])
        acc += tl.dot(tile, tl.trans(weights.to(tile.dtype)), input_precision="ieee")
    if SCALED:
        acc *= tl.load(scales + column)[None, :]
    if GELU:
        acc = 0.5 * acc * (1.0 + tl.erf(acc * 0.7071067811865476))
    value = acc.to(out.dtype.element_ty)
    tl.store(out + (tl.program_id(2) * rows + row[:, None]) * N + column[None, :], value, mask=mask)


@triton.jit
def _online_softmax(  # type: ignore[no-untyped-def]
    query, keys, values, key_scales, value_scales, begin, end,
    HEAD: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Attend from one query [HEAD] to the positions from begin to end, in one pass over their keys and values.

    Keys and values are [positions, HEAD]. Returns the state of the online softmax (Milakov & Gimelshein 2018): the
    largest score so far, the sum of exp(score − largest), and the sum of exp(score − largest) · value [HEAD]. States of
    several ranges combine to that of all.
    """
    d = tl.arange(0, HEAD)
    largest, denominator = tl.full((), -1e30, tl.float32), tl.zeros((), tl.float32)  # finite: the range may be empty
    numerator = tl.zeros((HEAD,), tl.float32)
    for start in tl.range(begin, end, BLOCK, num_stages=2 if SCALED else 1):
        at = start + tl.arange(0, BLOCK)
        offset = at[:, None] * HEAD + d[None, :]
        mask = at < end
        key = tl.load(keys + offset, mask=mask[:, None], other=0)
        value = tl.load(values + offset, mask=mask[:, None], other=0)
        if SCALED:  # through bf16, which holds every int8 exactly: faster than straight to fp32
            key, value = key.to(tl.bfloat16), value.to(tl.bfloat16)
        key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.sum(key * query[None, :], 1)
        if SCALED:
            scores *= tl.load(key_scales + at, mask=mask, other=0.0).to(tl.float32)
        scores = tl.where(mask, scores, -1e30)
        new_largest = tl.maximum(largest, tl.max(scores, 0))
        weights = tl.exp(scores - new_largest)
        rescale = tl.exp(largest - new_largest)
        denominator = denominator * rescale + tl.sum(weights, 0)
        if SCALED:
            weights *= tl.load(value_scales + at, mask=mask, other=0.0).to(tl.float32)
        numerator = numerator * rescale + tl.sum(weights[:, None] * value, 0)
        largest = new_largest
    return largest, denominator, numerator


@triton.jit
def _append_to_cache(x, cache, scales, index, HEAD: tl.constexpr, SCALED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store x [HEAD] as entry `index` of a cache, quantized with a scale of its own if SCALED."""
    d = tl.arange(0, HEAD)
    if SCALED:
        scale = (tl.maximum(tl.max(tl.abs(x), 0), 1e-12) / 127).to(scales.dtype.element_ty)
        tl.store(scales + index, scale)
        x = tl.floor(x / scale.to(tl.float32) + 0.5)
        x = tl.minimum(tl.maximum(x, -127.0), 127.0)  # the scale was rounded
    tl.store(cache + index * HEAD + d, x.to(cache.dtype.element_ty))


@triton.jit
def decode_attention_kernel(  # type: ignore[no-untyped-def]
    qkv, cache, scales, position, prefixes, out, numerators, stats, arrived, positions, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, SCALED: tl.constexpr,
    PREFIXED: tl.constexpr,
):  # fmt: skip
    """Store the self-attention of the newest position in out [R, HEADS · HEAD], and append its key and value.

    qkv [R, 3, HEADS · HEAD] holds its query, key and value. The earlier keys and values are in cache
    [2, R, HEADS, positions, HEAD] with scales [2, R, HEADS, positions]; if PREFIXED, those of prefixes [R] positions
    come before those of the steps.

    Flash-decoding: SPLITS program instances share a row's head, each over a range of the positions, so that few rows
    still occupy all SMs. Each writes its softmax state, to numerators [R · HEADS, SPLITS, HEAD] and stats
    [R · HEADS, SPLITS, 2], and increments the counter arrived [R · HEADS]. Whichever comes last combines the states, in
    the order of the splits, and resets the counter to zero.
    """
    head, split = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, HEAD)
    own = qkv + ((head // HEADS) * 3 * HEADS + head % HEADS) * HEAD + d
    query = tl.load(own).to(tl.float32) * scale
    length = tl.load(position).to(tl.int32)
    if PREFIXED:
        length += tl.load(prefixes + head // HEADS)
    per_split = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK) * BLOCK
    first_key = head.to(tl.int64) * positions
    first_value = first_key + tl.num_programs(0).to(tl.int64) * positions
    largest, denominator, numerator = _online_softmax(
        query, cache + first_key * HEAD, cache + first_value * HEAD, scales + first_key, scales + first_value,
        split * per_split, tl.minimum(length, (split + 1) * per_split),
        HEAD, BLOCK, SCALED,
    )  # fmt: skip
    if split == SPLITS - 1:
        key = tl.load(own + HEADS * HEAD).to(tl.float32)
        value = tl.load(own + 2 * HEADS * HEAD).to(tl.float32)
        score = tl.sum(key * query, 0)
        new_largest = tl.maximum(largest, score)
        weight = tl.exp(score - new_largest)
        rescale = tl.exp(largest - new_largest)
        largest = new_largest
        denominator = denominator * rescale + weight
        numerator = numerator * rescale + weight * value
        _append_to_cache(key, cache, scales, first_key + length, HEAD, SCALED)
        _append_to_cache(value, cache, scales, first_value + length, HEAD, SCALED)
    if SPLITS == 1:
        tl.store(out + head * HEAD + d, (numerator / denominator).to(out.dtype.element_ty))
    else:
        part = head * SPLITS + split
        tl.store(numerators + part * HEAD + d, numerator)
        tl.store(stats + part * 2, largest)
        tl.store(stats + part * 2 + 1, denominator)
        tl.debug_barrier()  # all threads have stored before the counter says so
        if tl.atomic_add(arrived + head, 1) == SPLITS - 1:
            splits = head * SPLITS + tl.arange(0, SPLITS)
            largests = tl.load(stats + splits * 2, cache_modifier=".cg")  # from the L2: the L1 may hold older values
            weights = tl.exp(largests - tl.max(largests, 0))
            sum_of_weights = tl.sum(weights * tl.load(stats + splits * 2 + 1, cache_modifier=".cg"), 0)
            parts = tl.load(numerators + splits[:, None] * HEAD + d[None, :], cache_modifier=".cg")
            combined = tl.sum(parts * weights[:, None], 0) / sum_of_weights
            tl.store(out + head * HEAD + d, combined.to(out.dtype.element_ty))
            tl.store(arrived + head, 0)


@triton.jit
def decode_cross_attention_kernel(  # type: ignore[no-untyped-def]
    q, text_cache, text_lengths, out, max_length, scale,
    HEADS: tl.constexpr, HEAD: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store the cross-attention of one head and row in out [R, HEADS · HEAD], zero for a row without text.

    The queries are the sum of q [PARTS, R, HEADS · HEAD], the split-K partial sums of their projection. text_cache
    [2, R, HEADS, max_length, HEAD] holds keys and values, of which the first text_lengths [R] are attended to.
    """
    head = tl.program_id(0)
    d = tl.arange(0, HEAD)
    query = tl.zeros((HEAD,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        query += tl.load(q + (part * tl.num_programs(0) + head) * HEAD + d)
    keys = text_cache + head.to(tl.int64) * max_length * HEAD
    values = keys + tl.num_programs(0).to(tl.int64) * max_length * HEAD
    _, denominator, numerator = _online_softmax(
        query * scale, keys, values, keys, values, 0, tl.load(text_lengths + head // HEADS),
        HEAD, BLOCK, False,
    )  # fmt: skip
    # The largest score alone contributes 1 to the denominator, which is below 1 only without text.
    tl.store(out + head * HEAD + d, (numerator / tl.maximum(denominator, 1.0)).to(out.dtype.element_ty))


@triton.jit
def _pivot(order, amounts, limit):  # type: ignore[no-untyped-def]
    """Return the largest pivot at which the amounts with order ≥ pivot sum to more than limit; 0 if there is none."""
    pivot = tl.full((), 0, tl.int32)
    for bit in range(30):  # an order is the bit pattern of a float of at most 1
        higher = pivot | (1 << (29 - bit))
        exceeds = tl.sum(tl.where(order >= higher, amounts, 0.0), 0) > limit
        pivot = tl.where(exceeds, higher, pivot)
    return pivot


@triton.jit
def sample_kernel(  # type: ignore[no-untyped-def]
    logits, noise, noise_prompt, noise_codebook, frames, delays, position, sequence, prompts, steps, given,
    guidance, temperature, top_k, top_p,
    CODEBOOKS: tl.constexpr, CARDINALITY: tl.constexpr, GREEDY: tl.constexpr,
):  # fmt: skip
    """Sample the codes of the next step of sequence [prompts, CODEBOOKS, steps], as `Window.choose` does.

    A program instance samples one code from the logits of its row pair, [R, CODEBOOKS, CARDINALITY], with CARDINALITY a
    power of two. noise [prompts, CODEBOOKS, ·] comes with its strides, as it is a slice; frames [prompts] are lengths,
    delays [CODEBOOKS] those of the pattern.

    Nothing is sorted. Positive floats order like their bit patterns, so the probability at which the sorted list is cut
    off, by top-k, by top-p or by the random draw, is found by binary search over the bits: 30 sums over the codes in
    registers. Codes of equal probability at the cut-off are all kept by top-k and top-p.
    """
    prompt, codebook = tl.program_id(0), tl.program_id(1)
    index = prompt * CODEBOOKS + codebook
    code = tl.arange(0, CARDINALITY)
    conditional = tl.load(logits + index * CARDINALITY + code)
    unconditional = tl.load(logits + (prompts * CODEBOOKS + index) * CARDINALITY + code)
    guided = unconditional + (conditional - unconditional) * guidance
    at = tl.load(position)
    if GREEDY:
        chosen = tl.argmax(guided, 0)
    else:
        guided /= temperature
        probabilities = tl.exp(guided - tl.max(guided, 0))
        probabilities /= tl.sum(probabilities, 0)
        order = probabilities.to(tl.int32, bitcast=True)
        cutoff = tl.full((), 0, tl.int32)
        if top_p > 0:
            cutoff = _pivot(order, probabilities, top_p)
        elif top_k > 0:
            cutoff = _pivot(order, tl.full((CARDINALITY,), 1.0, tl.float32), top_k - 1.0)
        probabilities = tl.where(order >= cutoff, probabilities, 0.0)
        draw = tl.minimum(tl.load(noise + prompt * noise_prompt + codebook * noise_codebook + at), 0.9999998)
        threshold = draw * tl.sum(probabilities, 0)  # less than the sum, also when rounded
        found = _pivot(order, probabilities, threshold)
        before = tl.sum(tl.where(order > found, probabilities, 0.0), 0)
        equal = (order == found).to(tl.int32)
        probability = tl.max(tl.where(order == found, probabilities, 0.0), 0)
        rank = tl.minimum(((threshold - before) / probability).to(tl.int32), tl.sum(equal, 0) - 1)
        chosen = tl.sum(tl.where((tl.cumsum(equal, 0) == rank + 1) & (equal > 0), code, 0), 0)
    frame = at - tl.load(delays + codebook)
    mask = (frame >= given) & (frame < tl.load(frames + prompt))
    tl.store(sequence + index * steps + at + 1, chosen.to(tl.int64), mask=mask)

"""The planned samples, and how they are batched."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.generation.plan import (
    ENGINE_BATCH_SIZES,
    TEXT_POSITIONS,
    Continuation,
    PlannedSample,
    batches,
    cache_bytes,
    fitting_size,
)
from musicgen_core.model.decoder import DecoderConfig

LARGE = DecoderConfig(dim=2048, layers=48, heads=32, ffn_dim=8192, text_dim=1024)


def piece(number: int, known: int, frames: int) -> PlannedSample:
    continuation = Continuation(torch.zeros(4, known, dtype=torch.int64))
    return PlannedSample(number, number, "jazz", 0, 0, number, known + frames, continuation)


@given(
    shapes=st.lists(st.tuples(st.sampled_from([0, 25, 50]), st.integers(1, 2000)), max_size=60),
    fitting=st.integers(0, 40),
)
def test_samples_of_a_batch_continue_equally_many_frames(shapes: list[tuple[int, int]], fitting: int) -> None:
    pieces = [piece(number, *shape) for number, shape in enumerate(shapes)]
    asked: list[tuple[int, int]] = []

    def size_for(left: int, frames: int) -> int:
        asked.append((left, frames))
        return fitting_size(left, fitting)

    made = list(batches(pieces, size_for))
    assert sorted(one.number for batch, _ in made for one in batch) == list(range(len(pieces)))
    for (batch, size), (left, frames) in zip(made, asked, strict=True):
        assert 1 <= len(batch) <= size == fitting_size(left, fitting)
        assert len({one.continuation.frames for one in batch}) == 1
        assert [one.frames for one in batch] == sorted(one.frames for one in batch)
        assert batch[-1].frames <= frames


@given(pieces=st.integers(1, 200), fitting=st.integers(0, 100))
def test_the_batch_size_holds_all_samples_or_is_the_largest_that_fits(pieces: int, fitting: int) -> None:
    size = fitting_size(pieces, fitting)
    assert size in ENGINE_BATCH_SIZES and size <= max(1, fitting)
    larger = [other for other in ENGINE_BATCH_SIZES if size < other <= fitting]
    smaller = [other for other in ENGINE_BATCH_SIZES if other < size]
    assert size >= pieces or not larger
    assert all(other < pieces for other in smaller)


def test_caches_of_30_s_take_1_1_gib_with_large_and_half_in_8_bits() -> None:
    assert 1.1 < cache_bytes(LARGE, 1500) / 2**30 < 1.11
    assert 0.56 < cache_bytes(LARGE, 1500, bits=8) / 2**30 < 0.58
    with_prefix = cache_bytes(replace(LARGE, chroma_frames=235), 1500)  # melody and text are cached with the codes
    assert with_prefix == cache_bytes(LARGE, 1500 + 235 + TEXT_POSITIONS)

"""Planted copies are found and named, and random music is not accused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_core import ngrams as module
from musicgen_core.codec import Codec
from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE
from musicgen_core.model.weights import find_model
from musicgen_core.ngrams import (
    BRIDGED,
    FEWEST_DISTINCT,
    NGRAM,
    Frames,
    Matches,
    Run,
    find_matches,
    repeated_share,
)
from musicgen_core.synthesis.composing import compose
from musicgen_core.synthesis.rendering import SoundBank

SECONDS = 3
PLANTED = SECONDS * FRAME_RATE


def music(seed: int, number: int, frames: int = 500) -> list[Frames]:
    """Return random codes of codebook 0."""
    rng = np.random.default_rng(seed)
    return [rng.integers(2048, size=frames).astype(np.uint16) for _ in range(number)]


def expected(sample: Frames, clips: list[Frames]) -> tuple[int, int]:
    """Return the number of counted n-grams and how many of these occur in a clip, from their definitions."""

    def windows(codes: Frames) -> list[tuple[int, ...]]:
        return [tuple(codes[i : i + NGRAM].tolist()) for i in range(len(codes) - NGRAM + 1)]

    counted = [window for window in windows(sample) if len(set(window)) >= FEWEST_DISTINCT]
    known = {window for clip in clips for window in windows(clip)}
    return len(counted), sum(window in known for window in counted)


@given(
    seed=st.integers(0, 2**32),
    clip=st.integers(0, 99),
    start=st.integers(0, 500 - PLANTED),
    clip_start=st.integers(0, 500 - PLANTED),
)
@settings(max_examples=25, deadline=None)
def test_a_planted_copy_is_found_and_named(seed: int, clip: int, start: int, clip_start: int) -> None:
    clips, samples = music(seed, 100), music(seed + 1, 3)
    clips[clip][clip_start : clip_start + PLANTED] = samples[1][start : start + PLANTED]
    first, copied, last = find_matches(samples, clips)
    assert first.longest is None and last.longest is None and first.share == last.share == 0
    assert copied.longest is not None and copied.shared >= PLANTED - NGRAM + 1
    found = copied.longest
    assert (found.clip, found.start - start, found.clip_start - clip_start) == (clip, 0, 0)
    assert found.frames == PLANTED and found.seconds == SECONDS


@given(st.integers(0, 2**32), st.integers(64, 2048))
@settings(max_examples=25, deadline=None)
def test_random_music_is_not_accused(seed: int, cardinality: int) -> None:
    samples, clips = ([codes % cardinality for codes in music(seed + i, 20)] for i in range(2))
    assert [(found.shared, found.longest) for found in find_matches(samples, clips)] == 20 * [(0, None)]


@given(seed=st.integers(0, 2**32), cardinality=st.integers(1, 8), lengths=st.lists(st.integers(0, 60), max_size=12))
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_the_definition_in_any_blocks(seed: int, cardinality: int, lengths: list[int]) -> None:
    rng = np.random.default_rng(seed)
    # Loops, so that n-grams recur although few codes occur.
    pieces = [np.resize(rng.integers(cardinality, size=7), length).astype(np.uint16) for length in [*lengths, 40, 0]]
    samples, clips = pieces[::2], pieces[1::2]
    found = find_matches(samples, clips)
    assert [(one.ngrams, one.shared) for one in found] == [expected(sample, clips) for sample in samples]
    assert all((one.longest is None) == (one.shared == 0) for one in found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CLIPS_AT_ONCE", 2)
        patch.setattr(module, "MOST_PAIRS", 1)
        assert find_matches(samples, clips) == found


def test_silence_and_held_notes_accuse_nobody() -> None:
    held = np.repeat([1, 2, 3], 100).astype(np.uint16)
    assert find_matches([held], [held]) == [Matches(0, 0, None)]
    assert repeated_share(held) == 0


def test_a_run_bridges_short_gaps_at_the_same_alignment() -> None:
    [clip] = music(0, 1)
    for gap, frames in ((BRIDGED, 40 + BRIDGED + 60), (BRIDGED + 1, 60)):
        [sample] = music(1, 1)
        second = 50 + 40 + gap
        sample[50:90], sample[second : second + 60] = clip[10:50], clip[50 + gap : 110 + gap]
        [found] = find_matches([sample], [clip])
        assert found.longest is not None and found.longest.frames == frames
        assert found.shared == 40 + 60 - 2 * (NGRAM - 1)


def test_a_run_is_of_one_clip_and_never_spans_two() -> None:
    [sample] = music(0, 1, frames=100)
    clips = [sample[:45], sample[45:], *music(1, 2)]
    [found] = find_matches([sample], clips)
    assert found.longest == Run(frames=55, start=45, clip=1, clip_start=0)
    assert found.shared == 100 - NGRAM + 1 - (NGRAM - 1)  # none of those that span the border


def test_without_samples_or_clips_nothing_is_found() -> None:
    assert find_matches([], music(0, 2)) == []
    assert find_matches(music(0, 1), []) == [Matches(500 - NGRAM + 1, 0, None)]


@given(st.integers(0, 2**32), st.integers(NGRAM, 150))
@settings(max_examples=25, deadline=None)
def test_a_sample_made_of_one_loop_repeats_itself_from_the_second_time_on(seed: int, period: int) -> None:
    [codes] = music(seed, 1, frames=period)
    loop = np.resize(codes, 4 * period)
    assert repeated_share(loop) == pytest.approx(1 - period / (4 * period - NGRAM + 1))
    assert repeated_share(music(seed, 1)[0]) == 0


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(find_model("demo"))


@pytest.fixture(scope="module")
def synthesized(codec: Codec) -> list[NDArray[np.uint16]]:
    """Return codes [4, 400] of synthesized clips in several styles."""
    audio = SoundBank().render([compose(seed, frames=400) for seed in range(6)], 400)
    return codec.start(list(audio.numpy()), SAMPLE_RATE).codes()


def test_a_copy_that_was_decoded_and_encoded_again_is_found(
    codec: Codec, synthesized: list[NDArray[np.uint16]]
) -> None:
    target = 4
    copied = torch.from_numpy(synthesized[target][:, 100 : 100 + PLANTED].astype(np.int64))
    # The demo model's codec inverts the polarity of what it decodes.
    heard = -codec.decode(copied[None])[0, 0].numpy()
    [codes] = codec.start([heard], SAMPLE_RATE).codes()
    [found] = find_matches([codes[0]], [clip[0] for clip in synthesized])
    assert found.longest is not None and found.longest.clip == target
    assert found.longest.clip_start == 100 + found.longest.start
    assert found.longest.seconds >= 1 and found.share > 0.2

from __future__ import annotations

import warnings

import numpy as np
import pyloudnorm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_core.generation.loudness import normalize

RATE = 32_000
Samples = NDArray[np.float32]


def loudness_of(samples: Samples) -> float:
    return pyloudnorm.Meter(RATE).integrated_loudness(samples.astype(np.float64))


def chords_and_drums(seed: int, level: float, seconds: float = 3.0) -> Samples:
    """Notes that swell and fade, with noise bursts four times a second."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    notes = sum(
        np.sin(2 * np.pi * rng.uniform(60, 4000) * time) * (1 + np.sin(rng.uniform(0.5, 3) * time)) for _ in range(4)
    )
    drums = rng.normal(size=len(time)) * np.exp(-((time * 4) % 1) * rng.uniform(5, 15)) * rng.uniform(0, 4)
    music = notes + drums
    return (level * music / np.abs(music).max()).astype(np.float32)


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.003, 4))
def test_music_comes_out_at_minus_14_lufs_and_never_clips(seed: int, level: float) -> None:
    out = normalize(chords_and_drums(seed, level), RATE)
    assert out.dtype == np.float32
    assert abs(loudness_of(out) + 14) < 0.5
    assert np.abs(out).max() < 1


@pytest.mark.parametrize("level", [1e-4, 0.5, 50.0])
def test_clicks_that_no_gain_makes_loud_enough_do_not_clip(level: float) -> None:
    clicks = np.zeros(RATE, dtype=np.float32)
    clicks[:: RATE // 4] = level
    out = normalize(clicks, RATE)
    assert np.isfinite(out).all() and np.abs(out).max() < 1


def test_what_needs_no_bending_is_only_scaled() -> None:
    time = np.arange(2 * RATE) / RATE
    quiet = (0.01 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)
    out = normalize(quiet, RATE)
    ratios = out[np.abs(quiet) > 1e-3] / quiet[np.abs(quiet) > 1e-3]
    assert ratios.std() / ratios.mean() < 1e-5


@given(st.integers(1, 2 * RATE))
@settings(max_examples=20)
def test_silence_of_any_length_stays_silence(samples: int) -> None:
    assert np.array_equal(normalize(np.zeros(samples, dtype=np.float32), RATE), np.zeros(samples, dtype=np.float32))


@given(st.integers(640, RATE // 2), st.floats(0.001, 1))
@settings(max_examples=20)
def test_a_frame_of_sound_is_long_enough(samples: int, level: float) -> None:
    sound = (level * np.sin(np.arange(samples) / 10)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = normalize(sound, RATE)
    assert out.shape == sound.shape
    assert np.isfinite(out).all() and 0.1 < np.abs(out).max() < 1

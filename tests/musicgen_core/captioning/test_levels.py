"""Loudness, silence and clipping of clips."""

from __future__ import annotations

import math

import pyloudnorm
import pytest
import torch
from torch import Tensor

from musicgen_core.captioning.levels import clipped_share, integrated_loudness, silent_share
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank

RATE = 32_000
TIMES = torch.arange(4 * RATE) / RATE


@pytest.fixture(scope="module")
def music() -> Tensor:
    return SoundBank().render(compose_many(6, 700), 300)


def sine(hertz: float) -> Tensor:
    return torch.sin(2 * math.pi * hertz * TIMES)[None]


def square(hertz: float) -> Tensor:
    return torch.where((hertz * TIMES) % 1 < 0.5, 1.0, -1.0)[None]


def quantized(audio: Tensor) -> Tensor:
    return (audio * 2**15).round().clamp(-(2**15), 2**15 - 1) / 2**15


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100])
def test_loudness_is_that_of_pyloudnorm(music: Tensor, rate: int) -> None:
    fading = music * torch.linspace(1, 0, music.shape[1]) ** 4  # so that both gates have something to reject
    quiet_end = torch.cat([music[:, : 3 * RATE], 0.001 * music[:, 3 * RATE :]], dim=1)
    batch = torch.cat([music, fading, quiet_end])
    expected = [pyloudnorm.Meter(rate).integrated_loudness(clip.double().numpy()) for clip in batch]
    assert integrated_loudness(batch, rate).tolist() == pytest.approx(expected, abs=0.02)


def test_loudness_follows_the_level(music: Tensor) -> None:
    louder = integrated_loudness(2 * music) - integrated_loudness(music)
    assert louder.tolist() == pytest.approx([20 * math.log10(2)] * len(music), abs=1e-3)


def test_silence_has_no_loudness() -> None:
    assert integrated_loudness(torch.zeros(1, RATE)).item() == -math.inf


def test_a_clip_shorter_than_a_gating_block_has_a_loudness() -> None:
    long, short = integrated_loudness(sine(997)), integrated_loudness(sine(997)[:, : RATE // 4])
    assert short.item() == pytest.approx(long.item(), abs=0.1)


def test_the_share_of_silence_is_that_of_the_quiet_time(music: Tensor) -> None:
    loud = 0.1 * sine(440)
    audio = torch.cat([loud, torch.zeros(1, RATE), 5e-4 * sine(440)[:, :RATE]], dim=1)
    assert silent_share(audio).item() == pytest.approx(2 / 6, abs=0.01)
    assert silent_share(torch.zeros(1, 7)).item() == 1
    assert silent_share(loud[:, :7]).item() == 0


@pytest.mark.parametrize("factor", [1.0, 0.4])
def test_music_that_is_loud_but_clean_is_not_clipped(music: Tensor, factor: float) -> None:
    peak = music / music.abs().amax(1, keepdim=True)
    limited = torch.tanh(2 * peak) / math.tanh(2)
    for audio in (peak, limited):
        assert clipped_share(quantized(factor * audio)).max().item() < 1e-4


@pytest.mark.parametrize("factor", [1.0, 0.4])
@pytest.mark.parametrize("gain", [2.0, 4.0])
def test_clipped_music_is_found_even_if_it_was_turned_down(music: Tensor, gain: float, factor: float) -> None:
    driven = gain * music / music.abs().amax(1, keepdim=True)
    truly = (driven.abs() >= 1).float().mean(1)
    measured = clipped_share(quantized(factor * driven.clamp(-1, 1)))
    assert ((measured > 0.15 * truly) & (measured <= truly + 1e-3)).all()
    assert (measured > 1e-3).all()


@pytest.mark.parametrize("hertz", [100.0, 440.0, 997.0])
def test_a_clipped_sine_is_clipped_for_as_long_as_it_is_flat(hertz: float) -> None:
    assert clipped_share((2 * sine(hertz)).clamp(-1, 1)).item() == pytest.approx(2 / 3, abs=0.03)


@pytest.mark.parametrize("hertz", [30.0, 110.0, 880.0])
@pytest.mark.parametrize("level", [1.0, 0.7, 0.05])
def test_synthesized_waves_are_not_clipped(hertz: float, level: float) -> None:
    for wave in (sine(hertz), square(hertz), 0.7 * square(hertz) + 0.3 * square(1.5 * hertz)):
        assert clipped_share(quantized(level * wave)).item() < 0.01


def test_silence_is_not_clipped_and_runs_end_with_their_clip() -> None:
    assert clipped_share(torch.zeros(2, 100)).tolist() == [0, 0]
    ends, begins = torch.zeros(100), torch.zeros(100)
    ends[96:], begins[0] = torch.tensor([0.3, 0.7, 1.0, 1.0]), 1.0
    assert clipped_share(torch.stack([ends, begins])).tolist() == [0, 0]

"""Tempo of clips, its confidence, and whether it is steady."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchaudio.functional
from torch import Tensor

from musicgen_core.captioning.tempo import measure_tempo
from musicgen_core.synthesis.captions import Truth
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank

RATE = 32_000
CLIPS, FRAMES = 24, 600


def composed() -> list[Truth]:
    return [clip.truth for clip in compose_many(CLIPS, 900, frames=FRAMES)]


@pytest.fixture(scope="module")
def music() -> Tensor:
    return SoundBank().render(compose_many(CLIPS, 900, frames=FRAMES), FRAMES)


@pytest.fixture(scope="module")
def beats(music: Tensor) -> Tensor:
    """Return the clips with a beat."""
    return music[[truth.beat for truth in composed()]]


def clicks(bpm: Callable[[float], float], seconds: float = 24.0) -> Tensor:
    """Return bursts of noise, [1, samples], at a tempo that depends on the time in seconds."""
    generator = torch.Generator().manual_seed(4)
    audio, now = torch.zeros(round((seconds + 1) * RATE)), 0.0
    while now < seconds:
        start = round(now * RATE)
        audio[start : start + 400] = 0.3 * torch.randn(400, generator=generator)
        now += 60 / bpm(now)
    return audio[None, : round(seconds * RATE)]


def test_the_tempo_is_measured_within_four_percent(music: Tensor) -> None:
    found = measure_tempo(music)
    ratios = [bpm / truth.bpm for bpm, truth in zip(found.bpm.tolist(), composed(), strict=True) if truth.beat]
    assert sum(abs(ratio - 1) <= 0.04 for ratio in ratios) >= 0.85 * len(ratios)
    assert all(any(abs(ratio * octave - 1) <= 0.04 for octave in (1, 2, 0.5)) for ratio in ratios)


@pytest.mark.parametrize("bpm", [67.3, 100.0, 123.4, 158.9])
@pytest.mark.parametrize("seconds", [4.0, 24.0])
def test_a_metronome_is_measured_exactly_and_is_steady(bpm: float, seconds: float) -> None:
    found = measure_tempo(clicks(lambda _: bpm, seconds))
    assert found.bpm.item() == pytest.approx(bpm, rel=0.005)
    assert found.confidence.item() > 0.9 and found.steady.item()


def test_a_tempo_that_changes_is_not_steady() -> None:
    found = measure_tempo(torch.cat([clicks(lambda now: 100 if now < 12 else 118), clicks(lambda now: 90 + 2 * now)]))
    assert found.steady.tolist() == [False, False]


def test_synthesized_music_is_steady(beats: Tensor) -> None:
    assert measure_tempo(beats).steady.float().mean().item() > 0.95


@pytest.mark.parametrize("seconds", [3.0, 24.0])
def test_noise_drones_and_silence_have_no_tempo(seconds: float) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, round(seconds * RATE), generator=generator)
    drone = sum(torch.sin(torch.arange(noise.shape[1]) * hertz / RATE * 6.2832) for hertz in (110.0, 165.2, 220.3))
    assert isinstance(drone, Tensor)
    found = measure_tempo(torch.cat([noise, noise.cumsum(1) / 300, 0.1 * drone[None], torch.zeros(1, noise.shape[1])]))
    assert found.bpm.isnan().all() and not found.steady.any()
    assert found.confidence.max().item() < 0.2


def test_a_level_or_an_inverted_phase_changes_nothing(beats: Tensor) -> None:
    expected = measure_tempo(beats)
    for factor in (0.05, 3.0, -1.0):
        found = measure_tempo(factor * beats)
        torch.testing.assert_close(found.bpm, expected.bpm, rtol=0.01, atol=0)
        torch.testing.assert_close(found.confidence, expected.confidence, rtol=0, atol=0.02)
        assert (found.steady == expected.steady).all()


def test_resampled_shifted_and_stretched_clips_agree(beats: Tensor) -> None:
    expected = measure_tempo(beats).bpm
    resample = torchaudio.functional.resample
    for factor, changed in (
        (1.0, resample(resample(beats, RATE, 44_100), 44_100, RATE)),
        (1.0, beats[:, RATE // 3 :]),
        (1.05, resample(beats, 105, 100)),
    ):
        ratio = measure_tempo(changed).bpm / (factor * expected)
        assert ((ratio - 1).abs() < 0.02).float().mean().item() >= 0.85


def test_a_clip_is_measured_alike_alone_and_in_a_batch(beats: Tensor) -> None:
    together = measure_tempo(beats[:3])
    for index in range(3):
        alone = measure_tempo(beats[index : index + 1])
        assert alone.bpm.item() == pytest.approx(together.bpm[index].item(), rel=1e-3)

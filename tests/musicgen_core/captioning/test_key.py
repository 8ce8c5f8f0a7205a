"""Key of clips and its confidence."""

from __future__ import annotations

import math

import pytest
import torch
import torchaudio.functional
from torch import Tensor

from musicgen_core.captioning.key import Key, measure_key
from musicgen_core.synthesis.captions import Truth
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank

RATE = 32_000
CLIPS, FRAMES = 24, 1_000
TIMES = torch.arange(RATE) / RATE
CADENCE = ((0, 4, 7), (5, 9, 12), (7, 11, 14), (0, 4, 7))
MINOR_CADENCE = ((0, 3, 7), (5, 8, 12), (7, 10, 14), (0, 3, 7))


def truths() -> list[Truth]:
    return [clip.truth for clip in compose_many(CLIPS, 900, frames=FRAMES)]


@pytest.fixture(scope="module")
def music() -> Tensor:
    return SoundBank().render(compose_many(CLIPS, 900, frames=FRAMES), FRAMES)


def chords(root: float, minor: bool) -> Tensor:
    """Return a cadence of plucked sounds with a bass, [1, samples]; fractional roots are out of tune."""

    def note(pitch: float) -> Tensor:
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        partials = [torch.sin(2 * math.pi * h * hertz * TIMES) / h**1.5 for h in range(1, 7)]
        return torch.stack(partials).sum(0) * torch.exp(-2 * TIMES)

    bars = [
        torch.stack([note(48 + root + chord[0] % 12), *(note(60 + root + step) for step in chord)]).sum(0)
        for chord in (MINOR_CADENCE if minor else CADENCE)
    ]
    return 0.1 * torch.cat([*bars, *bars])[None]


def test_keys_of_synthesized_music_are_right(music: Tensor) -> None:
    found = measure_key(music)
    keys = zip(found.root.tolist(), found.minor.tolist(), truths(), strict=True)
    right = [(root, minor) == (truth.root, truth.mode == "minor") for root, minor, truth in keys if truth.pitched]
    assert sum(right) >= 0.8 * len(right)


def test_a_confident_key_is_right_more_often(music: Tensor) -> None:
    cut = music[:, 5 * RATE :]  # where the piece began is not heard: relative keys are confused more often
    found = measure_key(cut)
    right = torch.tensor([root == truth.root for root, truth in zip(found.root.tolist(), truths(), strict=True)])
    sure = found.confidence > 0.7
    assert sure.any() and right[sure].float().mean() > right[~sure].float().mean()


@pytest.mark.parametrize("minor", [False, True])
def test_transposing_by_semitones_moves_the_key(minor: bool) -> None:
    found = measure_key(torch.cat([chords(root, minor) for root in range(12)]))
    assert found.root.tolist() == list(range(12))
    assert found.minor.tolist() == [minor] * 12


@pytest.mark.parametrize("cents", [-40, -25, 10, 30, 45])
def test_a_tuning_beside_440_hz_does_not_change_the_key(cents: int) -> None:
    found = measure_key(torch.cat([chords(root + cents / 100, minor=False) for root in (0, 3, 7)]))
    assert found.root.tolist() == [0, 3, 7]


def assert_same(found: Key, expected: Key) -> None:
    sure = expected.confidence > 0.2
    assert sure.any()
    assert (found.root == expected.root)[sure].all() and (found.minor == expected.minor)[sure].all()


def test_levels_phase_and_resampling_do_not_change_the_key(music: Tensor) -> None:
    expected = measure_key(music)
    resample = torchaudio.functional.resample
    for changed in (0.05 * music, -music, resample(resample(music, RATE, 44_100), 44_100, RATE)):
        assert_same(measure_key(changed), expected)


def test_a_clip_shifted_by_less_than_a_note_keeps_its_key(music: Tensor) -> None:
    assert_same(measure_key(music[:, RATE // 50 :]), measure_key(music))


def test_drums_noise_and_silence_have_no_key(music: Tensor) -> None:
    drums = music[[not truth.pitched for truth in truths()]]
    assert len(drums)
    noise = 0.1 * torch.randn(4, music.shape[1], generator=torch.Generator().manual_seed(2))
    found = measure_key(torch.cat([drums, noise, torch.zeros(1, music.shape[1])]))
    assert found.root.tolist() == [-1] * len(found.root)
    assert found.confidence.max().item() == 0


def test_a_single_note_has_no_certain_key() -> None:
    found = measure_key(0.2 * torch.sin(2 * math.pi * 440 * TIMES)[None])
    assert found.confidence.item() < 0.6

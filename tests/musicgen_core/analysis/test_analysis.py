"""Audio analysis compared with the true parameters of synthesized clips."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from musicgen_core.analysis.features import Classifier, features, frechet_distance_diagonal, log_mel, si_sdr
from musicgen_core.analysis.harmony import estimate_key, pitch_classes, share_in_key, slides
from musicgen_core.analysis.rhythm import meters, tempo_matches, tempos
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.music_theory import SCALES
from musicgen_core.synthesis.captions import Truth
from musicgen_core.synthesis.composing import compose_many
from musicgen_core.synthesis.rendering import SoundBank
from musicgen_core.synthesis.styles import ALL_STYLES

EACH = 4  # clips of each style


@pytest.fixture(scope="module")
def truths() -> list[Truth]:
    return [clip.truth for style in ALL_STYLES for clip in compose_many(EACH, 300, style)]


@pytest.fixture(scope="module")
def audio() -> Tensor:
    bank = SoundBank()
    return torch.cat([bank.render(compose_many(EACH, 300, style), 500) for style in ALL_STYLES])


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def test_the_tempo_is_heard(audio: Tensor, truths: list[Truth]) -> None:
    heard = [(bpm, truth.bpm) for bpm, truth in zip(tempos(audio).tolist(), truths, strict=True) if truth.beat]
    assert share([tempo_matches(bpm, true) for bpm, true in heard]) >= 0.95
    assert share([tempo_matches(bpm, heard[index - 7][1]) for index, (bpm, _) in enumerate(heard)]) < 0.4


def test_three_and_four_beats_in_a_bar_are_distinguished(audio: Tensor, truths: list[Truth]) -> None:
    heard = [(meter, truth.meter) for meter, truth in zip(meters(audio).tolist(), truths, strict=True) if truth.beat]
    for meter in (3, 4):
        assert share([of == meter for of, true in heard if true == meter]) >= 0.85


def in_tune(truths: list[Truth]) -> Iterator[int]:
    return (index for index, truth in enumerate(truths) if truth.pitched and truth.style != "theremin")


def test_notes_lie_in_the_key_and_not_in_a_distant_one(audio: Tensor, truths: list[Truth]) -> None:
    classes = pitch_classes(audio)
    for index in in_tune(truths):
        truth = truths[index]
        assert share_in_key(classes[index], truth.root, truth.mode) > 0.85
        assert share_in_key(classes[index], truth.root + 6, truth.mode) < 0.6


def test_the_key_is_estimated_up_to_its_neighbours(audio: Tensor, truths: list[Truth]) -> None:
    classes, shared, exact = pitch_classes(audio), [], []
    for index in in_tune(truths):
        root, mode = estimate_key(classes[index])
        truth = truths[index]
        scale = {(root + step) % 12 for step in SCALES[mode]}
        shared.append(len(scale & {(truth.root + step) % 12 for step in SCALES[truth.mode]}) >= 6)
        exact.append((root, mode) == (truth.root, truth.mode))
    assert share(shared) >= 0.95 and share(exact) >= 0.5


def test_only_sliding_notes_slide(audio: Tensor, truths: list[Truth]) -> None:
    for slide, truth in zip(slides(audio).tolist(), truths, strict=True):
        assert slide > 0.15 if truth.style == "theremin" else slide < 0.05


def test_styles_and_drums_of_new_clips_are_recognised(audio: Tensor, truths: list[Truth]) -> None:
    bank = SoundBank()
    new = [clip for style in ALL_STYLES for clip in compose_many(2, 900, style)]
    given = features(bank.render(new, 500))
    reference = features(audio)
    styles = Classifier(reference, [truth.style for truth in truths]).classify(given)
    assert share([style == clip.truth.style for style, clip in zip(styles, new, strict=True)]) >= 0.85
    drums = Classifier(reference, [str(truth.drums) for truth in truths]).classify(given)
    assert share([heard == str(clip.truth.drums) for heard, clip in zip(drums, new, strict=True)]) >= 0.95


def test_a_style_is_nearer_to_itself_than_to_others(audio: Tensor, truths: list[Truth]) -> None:
    given = features(audio)
    of = {style: given[[truth.style == style for truth in truths]] for style in ("ambient", "techno")}
    assert frechet_distance_diagonal(given, given) == pytest.approx(0, abs=1e-6)
    itself = frechet_distance_diagonal(of["techno"][:2], of["techno"][2:])
    assert frechet_distance_diagonal(of["ambient"], of["techno"]) > itself > 0


@pytest.mark.parametrize("true", [60, 90, 133.0, 160])
def test_a_tempo_matches_its_octaves_within_five_percent(true: float) -> None:
    assert all(tempo_matches(true * factor, true) for factor in (1, 2, 0.5, 1.04, 0.96, 2.08))
    assert not any(tempo_matches(true * factor, true) for factor in (1.06, 0.94, 1.5, 3, 1 / 3, 2 / 3))


def test_si_sdr_ignores_scale_and_measures_noise() -> None:
    signal = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(3, 10_000, generator=torch.Generator().manual_seed(2))
    assert si_sdr(signal, 0.3 * signal).min() > 60
    for decibels in (0, 10, 20):
        noisy = si_sdr(signal, 5 * (signal + 10 ** (-decibels / 20) * noise))
        torch.testing.assert_close(noisy, torch.full((3,), float(decibels)), rtol=0, atol=0.5)


def test_a_sines_level_is_its_own() -> None:
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(SAMPLE_RATE) / SAMPLE_RATE)[None]
    assert -10 < log_mel(sine).amax() < 3
    assert log_mel(0 * sine).amax() == pytest.approx(-70)


def test_silence_has_no_notes_and_breaks_nothing() -> None:
    silence = torch.zeros(2, SAMPLE_RATE)
    assert pitch_classes(silence).sum() == 0
    assert slides(silence).sum() == 0
    for measure in (tempos, meters):
        assert measure(silence).shape == (2,)
    assert features(silence).isfinite().all()

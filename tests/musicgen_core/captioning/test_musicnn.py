"""The taggers equal TensorFlow's, whatever is in the batch. `bench.tagger_reference` made musicnn.npz."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.tagger_reference import EVERY, seeded_clip
from musicgen_core.captioning.musicnn import FRAMES, HOP, PATCH_SAMPLES, Musicnn, Tagging, log_mel
from musicgen_core.errors import ModelError

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def taggers() -> Musicnn:
    return Musicnn(torch.device("cpu"))


@pytest.fixture(scope="module")
def expected() -> dict[str, Tensor]:
    with np.load(Path(__file__).with_name("musicnn.npz")) as file:
        return {name.removeprefix("seeded/"): torch.from_numpy(file[name]) for name in file.files}


def clip() -> Tensor:
    return torch.from_numpy(seeded_clip())[None]


def same(first: Tagging, second: Tagging, tolerance: float = 1e-5) -> bool:
    return all(
        torch.allclose(getattr(first, name), getattr(second, name), atol=scale * tolerance)
        for name, scale in (("mtt", 1), ("msd", 1), ("features", 10))
    )


def test_the_spectrogram_is_librosas(expected: dict[str, Tensor]) -> None:
    frames = log_mel(clip())[0]
    assert frames.shape == (1 + seeded_clip().size // HOP, 96)
    difference = (frames[::EVERY] - expected["mel"]).abs()
    assert difference.max() < 5e-4  # one step of fp16, where the rounding of a value differs
    assert difference.median() < 1e-6


def test_the_networks_are_tensorflows(taggers: Musicnn, expected: dict[str, Tensor]) -> None:
    found = taggers.predict(clip())
    assert found.mtt.shape == found.msd.shape == (1, 50) and found.features.shape == (1, 400)
    for name, probabilities in (("MTT", found.mtt), ("MSD", found.msd)):
        wanted = expected[f"{name}_musicnn/probabilities"]
        assert wanted.shape == (2, 50) and wanted.max() > 0.3
        assert (probabilities[0] - wanted.mean(0)).abs().max() < TOLERANCE
    wanted = torch.cat([expected[f"{name}_musicnn/features"].mean(0) for name in ("MTT", "MSD")])
    assert (found.features[0] - wanted).abs().max() < TOLERANCE * wanted.abs().max()


def test_a_clip_of_one_patch_is_tagged_by_it(taggers: Musicnn, expected: dict[str, Tensor]) -> None:
    found = taggers.predict(clip()[:, : FRAMES * HOP - 1])
    wanted = expected["MTT_musicnn/probabilities"][0]
    assert (found.mtt[0] - wanted).abs().max() < 0.02  # the last frame, which is reflected here


def test_a_clip_has_the_same_tags_in_any_batch(taggers: Musicnn) -> None:
    others = 0.1 * torch.randn(2, clip().shape[1], generator=torch.Generator().manual_seed(1))
    together = taggers.predict(torch.cat((others[:1], clip(), others[1:])))
    alone = taggers.predict(clip())
    assert same(Tagging(together.mtt[1:2], together.msd[1:2], together.features[1:2]), alone)


def test_tags_are_the_same_bits_again(taggers: Musicnn) -> None:
    first, second = taggers.predict(clip()), taggers.predict(clip())
    assert all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("mtt", "msd", "features"))


def test_a_short_clip_is_repeated(taggers: Musicnn) -> None:
    short = clip()[:, :16_000]
    assert same(taggers.predict(short), taggers.predict(short.repeat(1, 3)[:, :PATCH_SAMPLES]))
    assert taggers.predict(short[:, :1]).mtt.isfinite().all()


def test_silence_and_the_loudest_audio_give_probabilities(taggers: Musicnn) -> None:
    audio = torch.stack((torch.zeros(PATCH_SAMPLES), torch.ones(PATCH_SAMPLES), 1000 * clip()[0, :PATCH_SAMPLES]))
    found = taggers.predict(audio)
    assert ((found.mtt >= 0) & (found.mtt <= 1) & (found.msd >= 0) & (found.msd <= 1)).all()


@pytest.mark.parametrize("shape", [(16_000,), (0, 16_000), (2, 0), (1, 1, 16_000)])
def test_audio_of_another_shape_is_refused(taggers: Musicnn, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="not \\[B, samples\\]"):
        taggers.predict(torch.zeros(shape))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"musicnn is not installed\. Install what .* asks for: uv sync"):
        Musicnn(torch.device("cpu"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_tags(taggers: Musicnn) -> None:
    found = Musicnn(torch.device("cuda")).predict(clip())
    assert same(Tagging(found.mtt.cpu(), found.msd.cpu(), found.features.cpu()), taggers.predict(clip()), TOLERANCE)

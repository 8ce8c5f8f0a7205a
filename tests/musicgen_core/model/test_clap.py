"""Embeddings of a toy CLAP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch

from musicgen_core.errors import ModelError
from musicgen_core.evaluation.clap import clap_score
from musicgen_core.model.clap import Clap
from tests.stand_in_hub import StandInHub


@pytest.fixture(scope="module")
def clap(clap_weights: Path) -> Clap:
    return Clap(str(clap_weights))


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=int(seconds * 32_000)).astype(np.float32) * 0.1


def test_embeddings_equal_those_of_the_model_itself(clap: Clap, clap_weights: Path) -> None:
    from transformers import ClapModel, ClapProcessor

    model, processor = ClapModel.from_pretrained(clap_weights).eval(), ClapProcessor.from_pretrained(clap_weights)
    at_48_khz = soxr.resample(noise(1.0), 32_000, 48_000, quality="HQ")
    inputs = processor(text=["tune 3"], audio=at_48_khz, sampling_rate=48_000, return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs)
    text, sound = clap.of_texts(["tune 3"]), clap.of_sounds([noise(1.0)], 32_000)
    np.testing.assert_allclose(text, expected.text_embeds, atol=1e-6)
    np.testing.assert_allclose(sound, expected.audio_embeds, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(sound, axis=1), 1, atol=1e-6)
    assert clap_score(text, sound) == pytest.approx(float(expected.text_embeds[0] @ expected.audio_embeds[0]), abs=1e-6)


def test_embeddings_are_deterministic_and_independent_of_the_batch(clap: Clap) -> None:
    sounds, texts = [noise(0.3, 1), noise(2.6, 2), noise(1.0, 3)], ["tune", "tune 3 and 4", "5"]
    together = clap.of_sounds(sounds, 32_000)
    np.random.seed(1)  # what transformers' extractor draws from
    for i, sound in enumerate(sounds):
        np.testing.assert_array_equal(clap.of_sounds([sound], 32_000)[0], together[i])
    np.testing.assert_array_equal(clap.of_texts(texts)[1], clap.of_texts(texts[1:2])[0])


@pytest.mark.parametrize("samples", [300, 20_000, 48_000, 110_400])
def test_embeddings_of_a_batch_are_those_of_its_sounds(clap: Clap, samples: int) -> None:
    sounds = np.random.default_rng(0).normal(size=(9, samples)).astype(np.float32) * 0.1
    sounds[1] = 0
    expected = clap.of_sounds(list(sounds), clap.rate)
    np.testing.assert_allclose(clap.of_batch(torch.from_numpy(sounds)), expected, atol=1e-4)


def test_a_long_sound_is_the_mean_of_its_full_windows(clap: Clap) -> None:
    long = noise(2.3)
    windows = clap.of_sounds([long[:32_000], long[32_000:64_000]], 32_000)
    np.testing.assert_allclose(clap.of_sounds([long], 32_000)[0], windows.mean(axis=0), atol=2e-3)  # resampled in parts


def test_a_text_of_any_length_has_an_embedding(clap: Clap) -> None:
    assert clap.of_texts(["tune " * 1000, ""]).shape == (2, 8)


@pytest.mark.parametrize("kind", ["nothing", "another model"])
def test_other_models_than_clap_are_refused_with_advice(kind: str, tmp_path: Path) -> None:
    if kind == "another model":
        (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ModelError, match=r"the CLAP weights .* can't be loaded .*laion/larger_clap_music"):
        Clap(str(tmp_path))


def test_clap_weights_come_from_the_hub_once(hub: StandInHub, clap_weights: Path, clap: Clap) -> None:
    hub.add("laion/larger_clap_music", clap_weights, **{"pytorch_model.bin": b"the same again"})
    found = Clap("laion/larger_clap_music").of_texts(["tune 3"])
    np.testing.assert_array_equal(found, clap.of_texts(["tune 3"]))
    assert "pytorch_model.bin" not in hub.fetched()
    hub.requests.clear()
    Clap("laion/larger_clap_music")
    assert hub.requests == []


@pytest.mark.parametrize("source", ["no-such-clap", "./no/such", "/no/such"])
def test_clap_weights_that_are_nowhere_are_named_without_the_hub(hub: StandInHub, source: str) -> None:
    with pytest.raises(ModelError, match=f"there is no directory {source}"):
        Clap(source)
    assert hub.requests == []

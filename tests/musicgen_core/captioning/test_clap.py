"""Tags of clips by a toy CLAP with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from musicgen_core import music_tags
from musicgen_core.captioning import clap
from musicgen_core.captioning.clap import TEMPLATES, ClapTagger, choose_labels
from musicgen_core.captioning.labels import Labels
from musicgen_core.captioning.measuring import Measurer
from musicgen_core.captioning.taggers import ChosenTagger
from musicgen_core.data.audio import DecodedClip
from musicgen_core.data.caption_fields import texts_for_training
from musicgen_core.data.sentences import compose
from musicgen_core.errors import ClipRejected
from musicgen_core.music_tags import NO_VOCALS, Category, Tag
from tests.toy_clap import make_clap

CPU = torch.device("cpu")
LABELS: Labels = (("genre", ("enka", "rock")), ("instruments", ("koto", "piano")), ("mood", ("sad", "calm")))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clap(tmp_path_factory.mktemp("clap"), [label for _, labels in LABELS for label in labels])


@pytest.fixture(scope="module")
def tagger(weights: Path) -> ClapTagger:
    return ClapTagger(ChosenTagger("toy 1", str(weights), LABELS), CPU)


@pytest.fixture
def all_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every label count, as random weights prefer none."""
    monkeypatch.setattr(clap, "LEAST_RATIO", 0.0)
    monkeypatch.setattr(music_tags, "GENRE_SHARE", 0.0)


def noise(seconds: float, seed: int, rate: int = 48_000) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=int(seconds * rate)).astype(np.float32) * 0.1


@pytest.mark.usefixtures("all_labels")
def test_probabilities_are_those_of_the_models_own_classification(tagger: ClapTagger, weights: Path) -> None:
    from transformers import ClapModel, ClapProcessor

    model, processor = ClapModel.from_pretrained(weights).eval(), ClapProcessor.from_pretrained(weights)
    sound = noise(1.0, seed=1)
    [tags] = tagger.tag(torch.from_numpy(sound)[None])
    found = {tag.name: tag.probability for tag in tags}
    for category, labels in LABELS:
        texts = [TEMPLATES[category].format(label=label) for label in labels]
        inputs = processor(text=texts, audio=sound, sampling_rate=48_000, return_tensors="pt")
        with torch.inference_mode():
            [expected] = model(**inputs).logits_per_audio.softmax(-1).tolist()
        assert [found[label] for label in labels] == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("all_labels")
def test_tags_do_not_depend_on_the_batch_or_on_chance(tagger: ClapTagger) -> None:
    audio = torch.from_numpy(np.stack([noise(2.6, seed) for seed in range(9)]))
    together = tagger.tag(audio)
    np.random.seed(1)  # what transformers' extractor draws from
    for clip, tags in zip(audio, together, strict=True):
        [alone] = tagger.tag(clip[None])
        assert {tag.name for tag in alone} == {label for _, labels in LABELS for label in labels}
        expected = {(tag.category, tag.name): tag.probability for tag in tags}
        assert {(tag.category, tag.name): tag.probability for tag in alone} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("category", "probabilities", "expected"),
    [
        ("instruments", {"koto": 0.5, "shamisen": 0.45, "piano": 0.02, "harp": 0.02, "oboe": 0.01}, "koto shamisen"),
        ("instruments", {"koto": 0.25, "shamisen": 0.25, "piano": 0.25, "harp": 0.25}, ""),
        ("instruments", {"koto": 0.74, "shamisen": 0.26}, ""),
        ("instruments", {"shamisen": 0.24, "koto": 0.76}, "koto"),
        ("genre", {"enka": 0.4, "rock": 0.3, "pop": 0.2, **dict.fromkeys("abcdefghij", 0.01)}, "enka rock"),
        ("vocals", {"choir": 0.15, NO_VOCALS: 0.8, "shouting": 0.05}, NO_VOCALS),
        ("vocals", {"choir": 0.5, NO_VOCALS: 0.44, **dict.fromkeys("abcdef", 0.01)}, "choir"),
    ],
)
def test_labels_far_more_probable_than_the_others_are_chosen(
    category: Category, probabilities: dict[str, float], expected: str
) -> None:
    tags = choose_labels(category, tuple(probabilities), list(probabilities.values()))
    assert " ".join(tag.name for tag in tags) == expected
    assert all(tag == Tag(category, tag.name, probabilities[tag.name]) for tag in tags)


@pytest.mark.usefixtures("all_labels")
def test_own_labels_are_in_the_fields_of_their_categories_and_in_the_sentence(tagger: ClapTagger) -> None:
    clips = [("x", DecodedClip(noise(3, seed=2, rate=32_000), 32_000))]
    [(_, fields)] = Measurer(CPU, tagger).measure(clips)
    assert not isinstance(fields, ClipRejected)
    assert set(fields["genre"]) == {"enka", "rock"} and set(fields["instruments"]) == {"koto", "piano"}
    assert set(fields["mood"]) == {"calm", "sad"} and "vocals" not in fields
    assert (
        set(fields["tags"]) == {label for _, labels in LABELS for label in labels} == set(fields["confidence"]["tags"])
    )
    fields |= {"genre": ["enka"], "instruments": ["koto", "piano"], "mood": ["calm"], "tempo": None, "key": None}
    assert {compose(fields, f"{number}.wav") for number in range(99)} == {
        "calm enka koto with piano",
        "calm enka music with koto and piano",
        "calm enka track with koto and piano",
        "calm enka piece for koto and piano",
    }
    assert texts_for_training(fields) == {"genre": "enka", "moods": "calm", "instrument": "koto, piano"}

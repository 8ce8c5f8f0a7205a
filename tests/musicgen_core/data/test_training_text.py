"""How the text of a clip varies from epoch to epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.data.caption_fields import PREFIX, texts_for_training
from musicgen_core.data.training_text import TextVariation

FIELDS = {"genre": "dub", "bpm": "70", "key": "A minor"}
AUDIOCRAFT = TextVariation(merge_text_p=0.25, drop_desc_p=0.5, drop_other_p=0.5)


def texts(
    variation: TextVariation, description: str | None, fields: dict[str, str], count: int = 400
) -> list[str | None]:
    return [variation.apply(description, fields, np.random.default_rng([epoch, 7])) for epoch in range(count)]


def test_without_merging_every_text_is_the_description() -> None:
    assert set(texts(TextVariation(0, 1, 1), "calm.", FIELDS)) == {"calm."}


def test_all_fields_are_merged_in_random_order() -> None:
    merged = set(texts(TextVariation(1, 0, 0), "calm.", FIELDS))
    assert len(merged) == 6
    assert all(str(text).startswith("calm. ") for text in merged)
    assert all(sorted(str(text).split(". ")) == ["bpm: 70", "calm", "genre: dub", "key: A minor"] for text in merged)


def test_shares_of_texts_are_the_probabilities() -> None:
    found = texts(AUDIOCRAFT, "calm", FIELDS, 4000)
    merged = [str(text) for text in found if text != "calm"]
    assert len(merged) / len(found) == pytest.approx(0.25 * (1 - 0.5**3), abs=0.02)
    assert sum(not text.startswith("calm") for text in merged) / len(merged) == pytest.approx(0.5, abs=0.06)
    fields = Counter(field for text in merged for field in text.removeprefix("calm. ").split(". "))
    assert all(count / len(merged) == pytest.approx(0.5 / (1 - 0.5**3), abs=0.06) for count in fields.values())


def test_a_dropped_description_leaves_its_trigger_word() -> None:
    found = set(texts(TextVariation(1, 1, 0), "mystyle, calm", {**FIELDS, PREFIX: "mystyle"}))
    assert all(str(text).startswith("mystyle, ") and "calm" not in str(text) for text in found)


@given(
    description=st.none() | st.text(min_size=1),
    fields=st.dictionaries(st.sampled_from([*FIELDS, PREFIX]), st.text(min_size=1)),
    epoch=st.integers(0, 10),
    probabilities=st.tuples(*[st.floats(0, 1)] * 3),
)
def test_a_text_is_never_lost(
    description: str | None, fields: dict[str, str], epoch: int, probabilities: tuple[float, float, float]
) -> None:
    text = TextVariation(*probabilities).apply(description, fields, np.random.default_rng(epoch))
    assert text or not description
    assert text == TextVariation(*probabilities).apply(description, fields, np.random.default_rng(epoch))


def test_fields_have_audiocrafts_names() -> None:
    entry = {"genre": ["dub", "ambient"], "tempo": 69.6, "key": "A minor", "mood": "calm", "instruments": ["piano"]}
    assert texts_for_training(entry) == {
        "key": "A minor",
        "bpm": "70",
        "genre": "dub, ambient",
        "moods": "calm",
        "instrument": "piano",
    }


@pytest.mark.parametrize(
    ("tempo", "text"),
    [(69.6, "70"), ("69.6", "70"), (10**400, None), (float("inf"), None), (-3, None), (True, None), ("fast", None)],
    ids=["number", "text", "huge", "infinite", "negative", "switch", "word"],
)
def test_only_a_possible_tempo_is_a_text(tempo: object, text: str | None) -> None:
    assert texts_for_training({"tempo": tempo}).get("bpm") == text


def test_a_tempo_that_is_not_steady_is_no_text() -> None:
    assert texts_for_training({"tempo": 120, "tempo_steady": False}) == {}
    assert texts_for_training({"bpm": 120, "tempo": 60, "tempo_steady": False}) == {"bpm": "120"}


@pytest.mark.parametrize("entry", [{}, {"genre": ""}, {"genre": None, "tempo": None}, {"genre": {"a": 1}}, {"tags": 7}])
def test_unusable_fields_are_no_texts(entry: dict[str, object]) -> None:
    assert texts_for_training(entry) == {}

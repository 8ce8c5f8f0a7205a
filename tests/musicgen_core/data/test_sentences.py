"""Descriptions that are composed from measured or corrected fields."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.data.sentences import compose, without_vocals
from musicgen_core.music_tags import CATEGORIES

FIELDS: dict[str, Any] = {
    "tags": ["ambient", "piano", "strings", "no vocals", "soft"],
    "tempo": 70.2,
    "tempo_steady": True,
    "key": "A minor",
    "loudness": -14.0,
    "speech": 0.0,
}


def wordings(fields: dict[str, Any], clips: int = 200) -> set[str | None]:
    return {compose(fields, f"a.zip/{number}.wav") for number in range(clips)}


def test_a_sentence_has_everything_that_is_known_in_the_usual_order() -> None:
    assert "slow soft ambient piano with strings, no vocals, 70 bpm, A minor" in wordings(FIELDS)
    for text in wordings(FIELDS):
        assert text is not None
        for part in ("slow soft ambient", "piano", "strings", "no vocals", "70 bpm", "A minor"):
            assert part in text
        assert text.index("ambient") < text.index("piano") < text.index("strings")


def test_the_wording_varies_between_clips_and_is_always_the_same_for_one() -> None:
    assert len(wordings(FIELDS)) == 6
    assert compose(FIELDS, "a.zip/x.wav") == compose(FIELDS, "a.zip/x.wav")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tags": ["piano"]}, ["piano"]),
        ({"tags": ["rock"]}, ["rock music", "rock piece", "rock track"]),
        ({"tempo": 120.0}, ["120 bpm"]),
        (
            {"tempo": 60.0},
            ["60 bpm slow music", "slow music, 60 bpm", "slow piece, 60 bpm", "slow track, 60 bpm"],
        ),
        ({"tempo": 120.0, "tempo_steady": False}, [None]),
        ({"key": "C# minor"}, ["C# minor", "in C# minor"]),
        ({"tags": ["no vocals"]}, ["no vocals"]),
        ({"tags": ["vocals", "female vocals"]}, ["female vocals"]),
        ({"tags": ["female vocals", "male vocals"]}, ["female vocals and male vocals"]),
        ({"tags": ["rock", "indie rock"]}, ["indie rock music", "indie rock piece", "indie rock track"]),
        ({}, [None]),
        ({"tags": [], "tempo": None, "key": None}, [None]),
    ],
    ids=str,
)
def test_only_what_is_known_is_said(fields: dict[str, Any], expected: list[str | None]) -> None:
    assert sorted(wordings(fields), key=str) == expected


def test_tags_of_ones_own_are_in_the_sentence() -> None:
    assert "jazz trumpet" in wordings({"tags": ["jazz", "trumpet"]})
    assert "90 bpm" in str(compose({"tags": ["jazz"], "tempo": 90, "tempo_steady": None}, "a.zip/x.wav"))


def test_corrected_fields_come_before_tags() -> None:
    assert wordings({"tags": ["rock", "guitar"], "genre": "dub", "instruments": "bass, organ"}) >= {
        "dub bass with organ"
    }


def test_a_fast_tempo_is_called_fast_unless_the_mood_is_slow() -> None:
    assert all("fast" in str(text) for text in wordings({"tempo": 170.0, "tags": ["techno"]}))
    assert not any("fast" in str(text) for text in wordings({"tempo": 170.0, "tags": ["techno"], "mood": ["slow"]}))


@given(
    fields=st.fixed_dictionaries(
        {},
        optional={
            "tags": st.lists(st.sampled_from(sorted(CATEGORIES)), unique=True) | st.none() | st.text(),
            "tempo": st.floats() | st.integers() | st.none() | st.text(),
            "tempo_steady": st.booleans() | st.none(),
            "key": st.text() | st.none() | st.integers(),
            "genre": st.text() | st.lists(st.text()) | st.dictionaries(st.text(), st.text()),
        },
    ),
    clip=st.text(),
)
def test_any_fields_give_a_clean_sentence_or_none(fields: dict[str, Any], clip: str) -> None:
    text = compose(fields, clip)
    assert text is None or (text == text.strip() and ", ," not in text and not text.endswith(" with"))


def test_without_vocals_a_composed_description_has_none_and_a_persons_stays() -> None:
    entry = {**FIELDS, "archive": "a.zip", "path": "x.wav", "tags": ["pop", "guitar", "female vocals"]}
    composed = {**entry, "description": compose(entry, "a.zip/x.wav")}
    assert "female vocals" in str(composed["description"])
    silent = without_vocals(composed)
    assert silent["tags"] == ["pop", "guitar"] and silent["vocals"] == ["no vocals"]
    assert "female" not in silent["description"] and "guitar" in silent["description"]
    corrected = {**composed, "description": "pop song of a woman"}
    assert without_vocals(corrected)["description"] == "pop song of a woman"
    assert "description" not in without_vocals(entry)

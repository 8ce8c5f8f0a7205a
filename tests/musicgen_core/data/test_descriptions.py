from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data.caption_fields import field_text
from musicgen_core.data.captions import describe_sidecar, fill_template
from musicgen_core.data.members import Sidecar

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("  techno\n", "techno"),
        (120, "120"),
        (0, "0"),
        (-3, "-3"),
        (120.0, "120"),
        (44_100.0, "44100"),
        (119.97, "119.97"),
        (0.1 + 0.2, "0.3"),
        (True, "yes"),
        (False, "no"),
        (["techno", "dub"], "techno, dub"),
        (["techno", "", None, 4.0, {"a": 1}, ["b"]], "techno, 4"),
    ],
)
def test_fields_are_written_as_people_do(value: Any, text: str) -> None:
    assert field_text(value) == text


@pytest.mark.parametrize(
    "value", [None, "", " \n", [], ["", None], {}, {"a": "b"}, [["a"]], float("nan"), float("inf"), -float("inf")]
)
def test_fields_without_text_count_as_missing(value: Any) -> None:
    assert field_text(value) is None
    assert fill_template("{genre} {bpm}", {"genre": value, "bpm": 120}) is None


def test_every_field_of_the_template_must_be_there() -> None:
    entry = {"genre": "techno", "key signature": "C", "bpm": 120}
    assert fill_template("{genre} in {key signature}, {{{bpm}}}, {genre}", entry) == "techno in C, {120}, techno"
    assert fill_template("{genre} {mood}", entry) is None
    assert fill_template(None, entry) is None


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1))
def test_field_values_are_never_used_as_templates(text: str) -> None:
    for hostile in (text, f"{{{text}}}", "{genre.__class__}", "{0}"):
        assert fill_template("{genre}", {"genre": hostile}) == (hostile.strip() or None)


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("a calm piano\n", "a calm piano"),
        ("calm\r\n\r\n  piano", "calm piano"),
        (" \n", None),
        ("", None),
        ('{"description": "as it is"}', '{"description": "as it is"}'),
    ],
)
def test_a_text_beside_a_clip_is_taken_as_it_is_on_one_line(text: str, description: str | None) -> None:
    assert describe_sidecar(Sidecar(".txt", text), "{genre}").description == description


@pytest.mark.parametrize("text", ["", "{broken", "[1]", "null", '"text"', "[" * 100_000, '{"description": 7}', "{}"])
def test_json_sidecars_without_text_give_no_description(text: str) -> None:
    assert describe_sidecar(Sidecar(".json", text), None).description is None
    assert describe_sidecar(Sidecar(".json", text), "{genre}").description is None


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["description", "genre", "bpm"]), JSON))
def test_the_template_is_used_only_for_complete_entries(entry: dict[str, Any]) -> None:
    described = describe_sidecar(Sidecar(".json", json.dumps(entry)), "{genre}, {bpm} bpm").description
    genre, bpm = field_text(entry.get("genre")), field_text(entry.get("bpm"))
    own = entry.get("description")
    if genre and bpm:
        assert described == f"{genre}, {bpm} bpm"
    else:
        assert described == ((own.strip() or None) if isinstance(own, str) else None)

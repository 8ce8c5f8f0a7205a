"""`caption_template`, filled from the fields of the metadata."""

from __future__ import annotations

import pytest

from musicgen_core.errors import MetadataError
from tests.musicgen_core.data.metadata_lines import FILE, captions_of, clip, found


def test_a_template_is_filled_from_each_entrys_fields() -> None:
    entries = (
        {"path": "a.wav", "genre": "techno", "bpm": 128.0},
        {"path": "b/b.wav", "genre": ["dub", "ambient"], "bpm": 90},
    )
    captions = captions_of(*entries, template="{genre}, {bpm} bpm")
    assert found(captions, "a.wav") == (True, "techno, 128 bpm")
    assert found(captions, "b.flac") == (True, "dub, ambient, 90 bpm")
    assert captions.incomplete_lines == ()


def test_incomplete_entries_keep_their_description_and_are_reported() -> None:
    captions = captions_of(
        {"path": "a.wav", "genre": "techno"},
        {"path": "b.wav", "genre": None, "description": "own"},
        {"path": "c.wav"},
        {"path": "a.wav"},
        "broken",
        template="all {genre}",
    )
    assert captions.incomplete_lines == (2, 3)
    assert (captions.duplicate_lines, captions.broken_lines) == ((4,), (5,))
    assert [found(captions, name) for name in ("a.wav", "b.wav", "c.wav")] == [
        (True, "all techno"),
        (True, "own"),
        (True, None),
    ]


def test_ambiguity_of_names_follows_the_filled_template() -> None:
    alike = [{"path": f"{folder}/x.wav", "genre": "dub", "description": folder} for folder in "ab"]
    assert found(captions_of(*alike), "c/x.wav") == (False, None)
    assert found(captions_of(*alike, template="{genre}"), "c/x.wav") == (True, "dub")


def test_a_template_that_no_line_fills_lists_the_fields_present() -> None:
    entries = [clip("a.wav") | {"tempo": 120, "Genre": " "}, clip("b.wav") | {"key": "C", "bpm": None}]
    with pytest.raises(MetadataError) as refused:
        captions_of(*entries, "broken", entries[0], template="{genre} at {bpm} in {key}")
    assert "has genre, bpm, as caption_template asks; the fields are path, description, tempo, key" in (
        refused.value.found
    )
    assert str(FILE) in refused.value.found


def test_fields_that_are_never_in_the_same_line_are_named_too() -> None:
    with pytest.raises(MetadataError, match="has genre, bpm together"):
        captions_of({"path": "a.wav", "genre": "x"}, {"path": "b.wav", "bpm": 1}, template="{genre} {bpm}")


def test_measured_tempos_fill_templates_rounded_and_only_if_steady() -> None:
    entries = [
        {"path": "a.wav", "tags": ["dub", "piano"], "tempo": 88.4, "tempo_steady": True},
        {"path": "b.wav", "tags": ["house"], "tempo": 88.4, "tempo_steady": False, "description": "own"},
        {"path": "c.wav", "genre": "dub", "bpm": "128-130"},
    ]
    by_bpm = captions_of(*entries, template="{bpm} bpm")
    assert [found(by_bpm, name)[1] for name in ("a.wav", "b.wav", "c.wav")] == ["88 bpm", "own", "128-130 bpm"]
    by_tempo = captions_of(*entries, template="{instruments}, {tempo} bpm")
    assert [found(by_tempo, name)[1] for name in ("a.wav", "b.wav", "c.wav")] == ["piano, 88 bpm", "own", None]

"""Which entry of the metadata a clip matches, by path, name or stem, and metadata that match no clip."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data.match_report import check_matches
from musicgen_core.errors import MetadataError
from tests.musicgen_core.data.metadata_lines import FILE, captions_of, clip, found


def test_a_path_counts_before_a_file_name_and_that_before_a_stem() -> None:
    captions = captions_of(clip("a/x.wav", "path"), clip("b/y.wav", "name"), clip("c/z.flac", "stem"))
    assert found(captions, "a/x.wav") == (True, "path")
    assert found(captions, "elsewhere/y.wav") == (True, "name")
    assert found(captions, "elsewhere/z.wav") == (True, "stem")
    assert found(captions, "elsewhere/unknown.wav") == (False, None)
    twins = captions_of(clip("x.wav", "path"), clip("a/x.wav", "deeper"), clip("b/x.mp3", "another"))
    assert found(twins, "x.wav") == (True, "path")
    assert found(twins, "a/x.wav") == (True, "deeper")


def test_an_ambiguous_name_matches_nothing() -> None:
    captions = captions_of(clip("a/x.wav", "one"), clip("b/x.wav", "two"), clip("c/x.wav", "one"), clip("d/y.wav", "y"))
    assert found(captions, "e/x.wav") == (False, None)
    assert found(captions, "b/x.wav") == (True, "two")
    assert found(captions, "e/y.wav") == (True, "y")


def test_a_name_with_and_without_a_description_matches_nothing() -> None:
    assert found(captions_of(clip("a/x.wav", "one"), clip("b/x.wav", None)), "c/x.wav") == (False, None)


def test_equal_names_with_equal_descriptions_match_by_name() -> None:
    assert found(captions_of(clip("a/x.wav", "same"), clip("b/x.wav", "same")), "c/x.wav") == (True, "same")


def test_a_stem_may_be_ambiguous_where_the_names_are_not() -> None:
    captions = captions_of(clip("a/x.wav", "one"), clip("b/x.flac", "two"))
    assert found(captions, "c/x.wav") == (True, "one")
    assert found(captions, "c/x.mp3") == (False, None)


@pytest.mark.parametrize("stem", ["mix", "mix.v2", "take", "take.0.5x", "01. Intro", "02. Outro", "a.b.c", ".hidden"])
@pytest.mark.parametrize("suffix", ["", ".wav", ".FLAC", ".mp3"])
def test_a_dot_in_a_stem_is_part_of_it(stem: str, suffix: str) -> None:
    others = ["mix.v3", "take.1x", "01. Coda", "02", "01", "a.b", "a"]
    captions = captions_of(clip(f"{stem}{suffix}", "own"), *(clip(other, "another's") for other in others))
    assert found(captions, f"audio/{stem}.wav") == (True, "own")
    assert found(captions, "audio/01. Reprise.wav") == found(captions, "audio/mix.v4.wav") == (False, None)


@pytest.mark.parametrize("in_metadata", ["NFC", "NFD"])
@pytest.mark.parametrize("in_archive", ["NFC", "NFD"])
def test_accents_match_however_they_are_composed(in_metadata: Any, in_archive: Any) -> None:
    name = "música/ピアノがガ.wav"
    captions = captions_of(clip(unicodedata.normalize(in_metadata, name), "piano"))
    assert found(captions, unicodedata.normalize(in_archive, name)) == (True, "piano")


@pytest.mark.parametrize(
    "path", ["audio\\x.wav", "./audio/x.wav", "././audio/x.wav", ".\\audio\\x.wav", "C:\\music\\audio\\x.wav"]
)
def test_windows_and_dotted_paths_match(path: str) -> None:
    assert found(captions_of(clip(path, "found")), "audio/x.wav") == (True, "found")
    assert found(captions_of(clip("audio/x.wav", "found")), path) == (True, "found")


@pytest.mark.parametrize("path", ["audio\\x.wav", "./audio/x.wav", "././audio/x.wav", ".\\audio\\x.wav"])
def test_such_paths_match_as_paths_and_not_only_by_their_names(path: str) -> None:
    assert found(captions_of(clip(path, "found"), clip("b/x.wav", "other")), "audio/x.wav") == (True, "found")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"]), min_size=1), st.text())
)
def test_every_clip_is_found_under_its_own_path(descriptions: dict[str, str]) -> None:
    normal = {re.sub(r"^(\./)+", "", unicodedata.normalize("NFC", path)) for path in descriptions}
    if len(normal) == len(descriptions) > 0:
        captions = captions_of(*(clip(path, text) for path, text in descriptions.items()), ascii_only=False)
        assert captions.entries == len(descriptions)
        for path, text in descriptions.items():
            assert found(captions, path) == (True, text.strip() or None)


def test_metadata_that_match_no_clip_are_refused_with_examples() -> None:
    captions = captions_of(clip("songs/one.wav"))
    with pytest.raises(MetadataError) as refused:
        check_matches(captions, [("a", []), ("b", ["audio/two.wav", "audio/three.wav"]), ("c", ["four.wav"])])
    found = refused.value.found
    assert all(word in found for word in (str(FILE), "none of the 3 clips", "'songs/one.wav'", "'audio/two.wav'"))


def test_the_first_match_ends_the_check() -> None:
    def archives() -> Iterator[tuple[str, list[str]]]:
        yield "a", ["unknown.wav"]
        yield "b", ["unknown.wav", "one.wav"]
        raise AssertionError("a further archive was read")

    check_matches(captions_of(clip("songs/one.wav")), archives())


def test_archives_without_clips_are_not_the_metadatas_fault() -> None:
    check_matches(captions_of(clip("a.wav")), [("a", []), ("b", [])])

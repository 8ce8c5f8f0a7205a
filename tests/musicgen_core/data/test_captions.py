from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.captions import Captions, check_matches, load_captions
from musicgen_core.errors import MetadataError

FILE = storage.as_path("memory://captions/metadata.jsonl")


def captions_of(*entries: Any, ascii_only: bool = True) -> Captions:
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=ascii_only) for entry in entries]
    storage.write_text(FILE, "\n".join(lines) + "\n")
    return load_captions(FILE)


def clip(path: str, description: Any = "a description") -> dict[str, Any]:
    return {"path": path, "description": description}


# Matching


def test_a_path_counts_before_a_file_name_and_that_before_a_stem() -> None:
    captions = captions_of(clip("a/x.wav", "path"), clip("b/y.wav", "name"), clip("c/z.flac", "stem"))
    assert captions.find("a/x.wav") == (True, "path")
    assert captions.find("elsewhere/y.wav") == (True, "name")
    assert captions.find("elsewhere/z.wav") == (True, "stem")
    assert captions.find("elsewhere/unknown.wav") == (False, None)
    twins = captions_of(clip("x.wav", "path"), clip("a/x.wav", "deeper"), clip("b/x.mp3", "another"))
    assert twins.find("x.wav") == (True, "path")
    assert twins.find("a/x.wav") == (True, "deeper")


def test_a_name_that_stands_for_several_descriptions_matches_nothing() -> None:
    captions = captions_of(clip("a/x.wav", "one"), clip("b/x.wav", "two"), clip("c/x.wav", "one"), clip("d/y.wav", "y"))
    assert captions.find("e/x.wav") == (False, None)
    assert captions.find("b/x.wav") == (True, "two")
    assert captions.find("e/y.wav") == (True, "y")


def test_a_name_that_stands_for_a_description_and_for_none_matches_nothing() -> None:
    assert captions_of(clip("a/x.wav", "one"), clip("b/x.wav", None)).find("c/x.wav") == (False, None)


def test_clips_of_one_name_with_the_same_description_match_by_name() -> None:
    assert captions_of(clip("a/x.wav", "same"), clip("b/x.wav", "same")).find("c/x.wav") == (True, "same")


def test_a_stem_may_be_ambiguous_where_the_names_are_not() -> None:
    captions = captions_of(clip("a/x.wav", "one"), clip("b/x.flac", "two"))
    assert captions.find("c/x.wav") == (True, "one")
    assert captions.find("c/x.mp3") == (False, None)


@pytest.mark.parametrize("in_metadata", ["NFC", "NFD"])
@pytest.mark.parametrize("in_archive", ["NFC", "NFD"])
def test_accents_match_however_they_are_composed(in_metadata: Any, in_archive: Any) -> None:
    name = "música/ピアノがガ.wav"
    captions = captions_of(clip(unicodedata.normalize(in_metadata, name), "piano"))
    assert captions.find(unicodedata.normalize(in_archive, name)) == (True, "piano")


@pytest.mark.parametrize("path", ["audio\\x.wav", "./audio/x.wav", ".\\audio\\x.wav", "C:\\music\\audio\\x.wav"])
def test_windows_and_dotted_paths_match(path: str) -> None:
    assert captions_of(clip(path, "found")).find("audio/x.wav") == (True, "found")
    assert captions_of(clip("audio/x.wav", "found")).find(path) == (True, "found")


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"]), min_size=1), st.text())
)
def test_every_clip_is_found_under_its_own_path(descriptions: dict[str, str]) -> None:
    normal = {unicodedata.normalize("NFC", path).removeprefix("./"): text for path, text in descriptions.items()}
    if len(normal) == len(descriptions) > 0:
        captions = captions_of(*(clip(path, text) for path, text in descriptions.items()), ascii_only=False)
        assert captions.entries == len(descriptions)
        for path, text in descriptions.items():
            assert captions.find(path) == (True, text.strip() or None)


# Reading


def test_broken_lines_are_told_by_number_and_the_others_used() -> None:
    captions = captions_of(
        clip("a.wav"), "{broken", "", "[1]", {"description": "no path"}, {"path": 7}, clip("b.wav"), "null"
    )
    assert captions.broken_lines == (2, 4, 5, 6, 8)
    assert captions.entries == 2
    assert captions.find("b.wav")[0]


@pytest.mark.parametrize("description", [None, "", "  \n", 7, ["a"]])
def test_a_clip_without_a_usable_description_is_known_and_has_none(description: Any) -> None:
    assert captions_of(clip("a.wav", description)).find("a.wav") == (True, None)
    assert captions_of({"path": "a.wav", "duration": 3}).find("a.wav") == (True, None)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicodes_line_separators_inside_a_description_break_no_line(separator: str) -> None:
    captions = captions_of(clip("a.wav", f"one{separator}two"), clip("b.wav"), ascii_only=False)
    assert captions.find("a.wav") == (True, f"one{separator}two")
    assert (captions.entries, captions.broken_lines) == (2, ())


def test_half_a_surrogate_pair_is_replaced_so_that_the_description_can_be_stored() -> None:
    assert captions_of(r'{"path": "a.wav", "description": "a \ud83c b"}').find("a.wav") == (True, "a ? b")
    assert captions_of(r'{"path": "a.wav", "description": "a \ud83c\udfb5"}').find("a.wav") == (True, "a 🎵")


def test_files_from_windows_read_the_same() -> None:
    FILE.write_bytes(b"\xef\xbb\xbf" + b'{"path": "a.wav", "description": "x"}\r\n{"path": "b.wav"}\r\n')
    captions = load_captions(FILE)
    assert (captions.entries, captions.broken_lines) == (2, ())
    assert captions.find("a.wav") == (True, "x")


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"path,description\na.wav,x\n", b'[{"path": "a.wav"}]', b"\xff\xfe\x80"]
)
def test_a_file_that_is_no_metadata_is_named_with_what_it_should_hold(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(content)
    with pytest.raises(MetadataError) as refused:
        load_captions(storage.as_path(tmp_path / "metadata.jsonl"))
    assert str(tmp_path / "metadata.jsonl") in refused.value.found
    assert refused.value.next_step


def test_a_missing_file_is_named(tmp_path: Path, bucket: UPath) -> None:
    for place in (storage.as_path(tmp_path), bucket):
        with pytest.raises(MetadataError, match=r"none\.jsonl can't be read"):
            load_captions(place / "none.jsonl")


# Checking


def test_metadata_that_match_no_clip_are_an_error_with_an_example_of_each() -> None:
    captions = captions_of(clip("songs/one.wav"))
    with pytest.raises(MetadataError) as refused:
        check_matches(captions, [("empty", []), ("a", ["audio/two.wav", "audio/three.wav"]), ("b", ["four.wav"])])
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

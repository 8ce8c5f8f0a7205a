from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import Sidecar
from musicgen_core.data.captions import Captioner, Captions, check_matches, load_captions
from musicgen_core.errors import MetadataError

FILE = storage.as_path("memory://captions/metadata.jsonl")


def captions_of(*entries: Any, ascii_only: bool = True, template: str | None = None) -> Captions:
    lines = [entry if isinstance(entry, str) else json.dumps(entry, ensure_ascii=ascii_only) for entry in entries]
    storage.write_text(FILE, "\n".join(lines) + "\n")
    return load_captions(FILE, TokenizeSettings(caption_template=template))


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


def test_an_ambiguous_name_matches_nothing() -> None:
    captions = captions_of(clip("a/x.wav", "one"), clip("b/x.wav", "two"), clip("c/x.wav", "one"), clip("d/y.wav", "y"))
    assert captions.find("e/x.wav") == (False, None)
    assert captions.find("b/x.wav") == (True, "two")
    assert captions.find("e/y.wav") == (True, "y")


def test_a_name_with_and_without_a_description_matches_nothing() -> None:
    assert captions_of(clip("a/x.wav", "one"), clip("b/x.wav", None)).find("c/x.wav") == (False, None)


def test_equal_names_with_equal_descriptions_match_by_name() -> None:
    assert captions_of(clip("a/x.wav", "same"), clip("b/x.wav", "same")).find("c/x.wav") == (True, "same")


def test_a_stem_may_be_ambiguous_where_the_names_are_not() -> None:
    captions = captions_of(clip("a/x.wav", "one"), clip("b/x.flac", "two"))
    assert captions.find("c/x.wav") == (True, "one")
    assert captions.find("c/x.mp3") == (False, None)


@pytest.mark.parametrize("stem", ["mix", "mix.v2", "take", "take.0.5x", "01. Intro", "02. Outro", "a.b.c", ".hidden"])
@pytest.mark.parametrize("suffix", ["", ".wav", ".FLAC", ".mp3"])
def test_a_dot_in_a_stem_is_part_of_it(stem: str, suffix: str) -> None:
    others = ["mix.v3", "take.1x", "01. Coda", "02", "01", "a.b", "a"]
    captions = captions_of(clip(f"{stem}{suffix}", "own"), *(clip(other, "another's") for other in others))
    assert captions.find(f"audio/{stem}.wav") == (True, "own")
    assert captions.find("audio/01. Reprise.wav") == captions.find("audio/mix.v4.wav") == (False, None)


@pytest.mark.parametrize("in_metadata", ["NFC", "NFD"])
@pytest.mark.parametrize("in_archive", ["NFC", "NFD"])
def test_accents_match_however_they_are_composed(in_metadata: Any, in_archive: Any) -> None:
    name = "música/ピアノがガ.wav"
    captions = captions_of(clip(unicodedata.normalize(in_metadata, name), "piano"))
    assert captions.find(unicodedata.normalize(in_archive, name)) == (True, "piano")


@pytest.mark.parametrize(
    "path", ["audio\\x.wav", "./audio/x.wav", "././audio/x.wav", ".\\audio\\x.wav", "C:\\music\\audio\\x.wav"]
)
def test_windows_and_dotted_paths_match(path: str) -> None:
    assert captions_of(clip(path, "found")).find("audio/x.wav") == (True, "found")
    assert captions_of(clip("audio/x.wav", "found")).find(path) == (True, "found")


@pytest.mark.parametrize("path", ["audio\\x.wav", "./audio/x.wav", "././audio/x.wav", ".\\audio\\x.wav"])
def test_such_paths_match_as_paths_and_not_only_by_their_names(path: str) -> None:
    assert captions_of(clip(path, "found"), clip("b/x.wav", "other")).find("audio/x.wav") == (True, "found")


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
            assert captions.find(path) == (True, text.strip() or None)


# Reading


def test_broken_lines_are_reported_and_the_others_used() -> None:
    captions = captions_of(
        clip("a.wav"), "{broken", "", "[1]", {"description": "no path"}, {"path": 7}, clip("b.wav"), "null"
    )
    assert captions.broken_lines == (2, 4, 5, 6, 8)
    assert captions.entries == 2
    assert captions.find("b.wav")[0]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b'{"path": "x.wav", "description": "caf\xe9"}', id="another encoding"),
        pytest.param(b"[" * 100_000, id="nested too deep"),
        pytest.param(b'{"path": "x.wav", "bpm": ' + b"9" * 5_000 + b"}", id="a number too long"),
        pytest.param(b"\0\0\0\0", id="zeros"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_no_line_is_so_bad_that_it_costs_another(line: bytes, at: int) -> None:
    lines = [b'{"path": "a.wav"}', b'{"path": "b.wav", "description": "b"}']
    FILE.write_bytes(b"\n".join([*lines[:at], line, *lines[at:]]))
    captions = load_captions(FILE)
    assert (captions.entries, captions.broken_lines) == (2, (at + 1,))
    assert captions.find("b.wav") == (True, "b")


def test_the_first_line_for_a_path_counts_and_others_are_reported() -> None:
    captions = captions_of(
        clip("a.wav", "first"), clip("b.wav"), clip("./a.wav", "second"), "", clip("c\\é.wav"), clip("c/e\u0301.wav")
    )
    assert captions.duplicate_lines == (3, 6)
    assert (captions.entries, captions.broken_lines) == (3, ())
    assert captions.find("a.wav") == (True, "first")


@pytest.mark.parametrize("description", [None, "", "  \n", 7, ["a"]])
def test_a_clip_without_a_usable_description_matches(description: Any) -> None:
    assert captions_of(clip("a.wav", description)).find("a.wav") == (True, None)
    assert captions_of({"path": "a.wav", "duration": 3}).find("a.wav") == (True, None)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_do_not_break_lines(separator: str) -> None:
    captions = captions_of(clip("a.wav", f"one{separator}two"), clip("b.wav"), ascii_only=False)
    assert captions.find("a.wav") == (True, f"one{separator}two")
    assert (captions.entries, captions.broken_lines) == (2, ())


def test_lone_surrogates_in_a_description_are_replaced() -> None:
    assert captions_of(r'{"path": "a.wav", "description": "a \ud83c b"}').find("a.wav") == (True, "a ? b")
    assert captions_of(r'{"path": "a.wav", "description": "a \ud83c\udfb5"}').find("a.wav") == (True, "a 🎵")


def test_files_from_windows_read_the_same() -> None:
    FILE.write_bytes(b"\xef\xbb\xbf" + b'{"path": "a.wav", "description": "x"}\r\n{"path": "b.wav"}\r\n')
    captions = load_captions(FILE)
    assert (captions.entries, captions.broken_lines) == (2, ())
    assert captions.find("a.wav") == (True, "x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp932"])
def test_metadata_in_any_detectable_encoding_read_the_same(encoding: str) -> None:
    lines = [json.dumps(clip(name, "静かなピアノ"), ensure_ascii=False) for name in ("a.wav", "ピアノ.wav")]
    FILE.write_bytes("\r\n".join(lines).encode(encoding))
    captions = load_captions(FILE)
    assert (captions.entries, captions.broken_lines) == (2, ())
    assert captions.find("ピアノ.wav") == (True, "静かなピアノ")


def test_files_with_byte_order_marks_may_be_joined() -> None:
    FILE.write_bytes(2 * b"\xef\xbb\xbf\n" + b'{"path": "a.wav"}\n\xef\xbb\xbf{"path": "b.wav"}\n')
    captions = load_captions(FILE)
    assert (captions.entries, captions.broken_lines) == (2, ())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"path,description\na.wav,x\n",
        b'[{"path": "a.wav"}]',
        b"\xff\xfe\x80",
        '{"title": "a.wav"}'.encode("utf-16"),
    ],
)
def test_a_file_without_metadata_is_named_with_the_expected_form(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(content)
    with pytest.raises(MetadataError) as refused:
        load_captions(storage.as_path(tmp_path / "metadata.jsonl"))
    assert str(tmp_path / "metadata.jsonl") in refused.value.found
    assert refused.value.next_step


def test_a_missing_file_is_named(tmp_path: Path, bucket: UPath) -> None:
    for place in (storage.as_path(tmp_path), bucket):
        with pytest.raises(MetadataError, match=r"none\.jsonl can't be read"):
            load_captions(place / "none.jsonl")


# Templates


def test_a_template_is_filled_from_each_entrys_fields() -> None:
    entries = (
        {"path": "a.wav", "genre": "techno", "bpm": 128.0},
        {"path": "b/b.wav", "genre": ["dub", "ambient"], "bpm": 90},
    )
    captions = captions_of(*entries, template="{genre}, {bpm} bpm")
    assert captions.find("a.wav") == (True, "techno, 128 bpm")
    assert captions.find("b.flac") == (True, "dub, ambient, 90 bpm")
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
    assert [captions.find(name) for name in ("a.wav", "b.wav", "c.wav")] == [
        (True, "all techno"),
        (True, "own"),
        (True, None),
    ]


def test_ambiguity_of_names_follows_the_filled_template() -> None:
    alike = [{"path": f"{folder}/x.wav", "genre": "dub", "description": folder} for folder in "ab"]
    assert captions_of(*alike).find("c/x.wav") == (False, None)
    assert captions_of(*alike, template="{genre}").find("c/x.wav") == (True, "dub")


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


# Describing

SIDECARS = [
    Sidecar(".json", '{"description": "beside", "genre": "funk"}'),
    Sidecar(".txt", "beside\r\n"),
]


@pytest.mark.parametrize("beside", SIDECARS)
def test_precedence_is_caption_then_metadata_then_sidecar(beside: Sidecar) -> None:
    metadata = captions_of(clip("a.wav", "entry"), clip("b.wav", None))
    captioner = Captioner(TokenizeSettings(), metadata)
    assert captioner.describe("a.wav", beside) == captioner.describe("a.wav") == "entry"
    assert captioner.describe("b.wav", beside) == captioner.describe("c.wav", beside) == "beside"
    assert captioner.describe("b.wav") is captioner.describe("c.wav") is None
    assert Captioner(TokenizeSettings(), None).describe("a.wav", beside) == "beside"
    always = Captioner(TokenizeSettings(caption="always"), metadata)
    assert {always.describe(name, beside) for name in ("a.wav", "b.wav", "c.wav")} == {"always"}
    assert captioner.uses_sidecars and not always.uses_sidecars


def test_the_template_applies_to_metadata_and_json_sidecars() -> None:
    settings = TokenizeSettings(caption_template="all {genre}")
    metadata = captions_of({"path": "a.wav", "genre": "dub"}, clip("b.wav", "own"), template=settings.caption_template)
    captioner = Captioner(settings, metadata)
    assert captioner.describe("a.wav", SIDECARS[0]) == "all dub"
    assert captioner.describe("b.wav", SIDECARS[0]) == "own"
    assert captioner.describe("c.wav", SIDECARS[0]) == "all funk"
    assert captioner.describe("c.wav", Sidecar(".json", '{"description": "beside"}')) == "beside"
    assert captioner.describe("c.wav", SIDECARS[1]) == "beside"


@pytest.mark.parametrize(
    ("values", "described"),
    [({}, "TOK, entry"), ({"caption": "always"}, "TOK, always"), ({"caption_template": "a {g}"}, "TOK, a dub")],
)
def test_the_prefix_precedes_descriptions_or_stands_alone(values: dict[str, str], described: str) -> None:
    settings = TokenizeSettings(caption_prefix="TOK", **values)
    FILE.write_bytes(b'{"path": "a.wav", "description": "entry", "g": "dub"}')
    captioner = Captioner(settings, load_captions(FILE, settings))
    assert captioner.describe("a.wav") == described
    assert captioner.describe("b.wav") == ("TOK, always" if "caption" in values else "TOK")
    assert captioner.describe("b.wav", SIDECARS[1]) == ("TOK, always" if "caption" in values else "TOK, beside")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.builds(Sidecar, st.sampled_from([".json", ".txt"]), st.text(st.characters())), max_size=2),
    st.none() | st.text(st.characters(), min_size=1),
)
def test_a_description_is_storable_text_or_none(sidecars: list[Sidecar], prefix: str | None) -> None:
    text = Captioner(TokenizeSettings(caption_prefix=prefix)).describe("a.wav", *sidecars)
    assert text is None or (text.encode() and text == text.strip())


@pytest.mark.parametrize("empty", ["{}", '{"description": null}', "[1]", ""])
def test_json_without_a_description_does_not_hide_the_text(empty: str) -> None:
    beside = (Sidecar(".json", empty), Sidecar(".txt", "calm piano"))
    assert Captioner().describe("a.wav", *beside) == "calm piano"
    assert Captioner().remark("a.wav", *beside) is None


def test_too_long_descriptions_are_cut_at_a_word_and_reported() -> None:
    captioner = Captioner(TokenizeSettings(caption_prefix="TOK"))
    text = captioner.describe("a.wav", beside := Sidecar(".txt", "verse and chorus " * 600))
    assert text is not None and 1980 < len(text) <= 2000 and text.startswith("TOK, verse and")
    assert text.rsplit(maxsplit=1)[1] in ("verse", "and", "chorus")
    assert captioner.remark("a.wav", beside) == f"its description of 10,204 characters was cut to {len(text):,}"
    assert len(Captioner().describe("a.wav", Sidecar(".txt", "静" * 9000)) or "") == 2000
    assert Captioner().remark("a.wav", Sidecar(".txt", "x" * 2000)) is None


def test_an_unusable_sidecar_is_reported_where_it_matters() -> None:
    unreadable, broken = Sidecar(".txt", "", "is neither UTF-8 nor …"), Sidecar(".json", "{broken")
    metadata = captions_of(clip("described.wav", "entry"))
    captioner = Captioner(TokenizeSettings(), metadata)
    assert captioner.remark("a.wav", unreadable) == "the .txt beside it is neither UTF-8 nor …"
    assert captioner.remark("a.wav", broken) == "the .json beside it is not a JSON object"
    assert captioner.remark("described.wav", unreadable) is None
    assert Captioner(TokenizeSettings(caption="all")).remark("a.wav", unreadable) is None


# Checking


def test_metadata_that_match_no_clip_are_refused_with_examples() -> None:
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

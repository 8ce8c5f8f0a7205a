"""Reading `metadata.jsonl`: broken and duplicate lines, encodings, files that hold no metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.captions import load_captions
from musicgen_core.errors import MetadataError
from tests.musicgen_core.data.metadata_lines import FILE, captions_of, clip, found


def test_broken_lines_are_reported_and_the_others_used() -> None:
    captions = captions_of(
        clip("a.wav"), "{broken", "", "[1]", {"description": "no path"}, {"path": 7}, clip("b.wav"), "null"
    )
    assert captions.broken_lines == (2, 4, 5, 6, 8)
    assert captions.entries == 2
    assert found(captions, "b.wav")[0]


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
    assert found(captions, "b.wav") == (True, "b")


def test_the_first_line_for_a_path_counts_and_others_are_reported() -> None:
    captions = captions_of(
        clip("a.wav", "first"), clip("b.wav"), clip("./a.wav", "second"), "", clip("c\\é.wav"), clip("c/e\u0301.wav")
    )
    assert captions.duplicate_lines == (3, 6)
    assert (captions.entries, captions.broken_lines) == (3, ())
    assert found(captions, "a.wav") == (True, "first")


@pytest.mark.parametrize("description", [None, "", "  \n", 7, ["a"]])
def test_a_clip_without_a_usable_description_matches(description: Any) -> None:
    assert found(captions_of(clip("a.wav", description)), "a.wav") == (True, None)
    assert found(captions_of({"path": "a.wav", "duration": 3}), "a.wav") == (True, None)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_unicode_line_separators_do_not_break_lines(separator: str) -> None:
    captions = captions_of(clip("a.wav", f"one{separator}two"), clip("b.wav"), ascii_only=False)
    assert found(captions, "a.wav") == (True, f"one{separator}two")
    assert (captions.entries, captions.broken_lines) == (2, ())


def test_lone_surrogates_in_a_description_are_replaced() -> None:
    assert found(captions_of(r'{"path": "a.wav", "description": "a \ud83c b"}'), "a.wav") == (True, "a ? b")
    assert found(captions_of(r'{"path": "a.wav", "description": "a \ud83c\udfb5"}'), "a.wav") == (True, "a 🎵")


def test_files_from_windows_read_the_same() -> None:
    FILE.write_bytes(b"\xef\xbb\xbf" + b'{"path": "a.wav", "description": "x"}\r\n{"path": "b.wav"}\r\n')
    captions = load_captions(FILE)
    assert (captions.entries, captions.broken_lines) == (2, ())
    assert found(captions, "a.wav") == (True, "x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp932"])
def test_metadata_in_any_detectable_encoding_read_the_same(encoding: str) -> None:
    lines = [json.dumps(clip(name, "静かなピアノ"), ensure_ascii=False) for name in ("a.wav", "ピアノ.wav")]
    FILE.write_bytes("\r\n".join(lines).encode(encoding))
    captions = load_captions(FILE)
    assert (captions.entries, captions.broken_lines) == (2, ())
    assert found(captions, "ピアノ.wav") == (True, "静かなピアノ")


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

from __future__ import annotations

import io
from pathlib import Path

import pytest
from upath import UPath

from musicgen_core.data.archive import content_digest, open_archive
from musicgen_core.data.damage import recognise
from musicgen_core.errors import ArchiveError


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4", "7-Zip"),
        (b"Rar!\x1a\x07\x01\0", "RAR"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS pointer"),
        (b"/annex/objects/SHA256E-s5--0.zip\n", "git-annex pointer"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "HTML page"),
        (b"\xef\xbb\xbf\r\n<!-- x -->\n<HTML lang=en>", "HTML page"),
    ],
)
def test_foreign_files_are_called_by_their_kind(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "a.zip").write_bytes(data + bytes(100))
    with pytest.raises(ArchiveError, match=expected) as refused, open_archive(tmp_path / "a.zip"):
        pass
    assert "a.zip" in refused.value.found and refused.value.next_step
    with pytest.raises(ArchiveError, match=expected):  # it comes first when archives are tokenized
        content_digest(UPath(tmp_path / "a.zip"))


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"RIFF\0\0\0\0WAVE", b"html", io.BytesIO(b"\0" * 512).read()])
def test_anything_else_is_left_to_its_reader(data: bytes) -> None:
    assert recognise(data) is None

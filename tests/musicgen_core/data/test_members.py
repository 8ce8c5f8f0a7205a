"""Scratch files, and files of foreign kinds."""

from __future__ import annotations

import errno
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from upath import UPath

from musicgen_core.data import members as module
from musicgen_core.data.archive import content_digest, open_archive
from musicgen_core.data.members import filled, recognise, scratch
from musicgen_core.errors import ArchiveError


@pytest.mark.parametrize("in_memory", [True, False])
def test_content_is_readable_by_file_and_by_descriptor(in_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_memory:
        monkeypatch.setattr(module, "_MAX_IN_MEMORY", -1)
    for blocks in ([], [b"a"], [b"ab", b"c" * 100_000], [b"x" * (1 << 20)] * 3):
        with filled(sum(map(len, blocks)), iter(blocks)) as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
            assert os.fstat(file.fileno()).st_size == sum(map(len, blocks))
            with open(os.dup(file.fileno()), "rb") as same:
                assert same.read() == b"".join(blocks)
            file.seek(0)
            assert file.read() == b"".join(blocks)


def test_only_large_files_are_on_disk_and_none_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch(64 << 20) as small, scratch((64 << 20) + 1) as large:
        assert os.fstat(small.fileno()).st_dev != os.fstat(large.fileno()).st_dev
        assert os.fstat(large.fileno()).st_dev == tmp_path.stat().st_dev
        assert list(tmp_path.iterdir()) == []


def no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=999))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(module, "_MAX_IN_MEMORY", 500)


def no_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", missing)
    monkeypatch.setattr(module, "_MAX_IN_MEMORY", 500)


@pytest.mark.parametrize("fault", [no_room, no_folder])
def test_a_clip_is_read_even_if_the_temporary_folder_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    content = bytes(range(250)) * 4
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", content)
    (tmp_path / "tmp").mkdir()
    fault(tmp_path / "tmp", monkeypatch)
    with open_archive(tmp_path / "a.zip") as opened:
        [member] = opened.clips()
        with member.open() as file:
            assert os.pread(file.fileno(), 2000, 0) == content
            assert os.fstat(file.fileno()).st_dev != tmp_path.stat().st_dev
    assert not list((tmp_path / "tmp").iterdir())


def test_a_folder_with_just_enough_room_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_room(tmp_path, monkeypatch)
    with scratch(999) as file:
        assert os.fstat(file.fileno()).st_dev == tmp_path.stat().st_dev


def descriptors() -> set[str]:
    """Return the descriptors of scratch files, ignoring those of other tests' threads."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "musicgen-" in str(entry.readlink()):
                found.add(entry.name)
    return found


def test_a_file_that_can_not_be_filled_is_closed() -> None:
    def blocks() -> Iterator[bytes]:
        assert descriptors() > before
        yield b"a"
        raise KeyboardInterrupt

    before = descriptors()
    with pytest.raises(KeyboardInterrupt):
        filled(2, blocks())
    assert descriptors() == before


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

"""Damaged tars and archive bombs."""

from __future__ import annotations

import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core import storage
from musicgen_core.data import members as members_module
from musicgen_core.data.archive import clip_names
from musicgen_core.data.members import Limits
from musicgen_core.errors import ArchiveError
from tests.fixture_types import Contents, Pack
from tests.musicgen_core.data.tar_entries import entry, sealed, write


def test_a_damaged_header_is_an_error_and_not_the_end(tmp_path: Path, pack: Pack, contents: Contents) -> None:
    path = pack(tmp_path / "a.tar", [("a.wav", b"a" * 512), ("b.wav", b"b" * 512)], "tar")
    data = bytearray(path.read_bytes())
    data[1024 + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged header"):
        contents(path)


@pytest.mark.parametrize(
    "size",
    [b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\xff" * 11 + b"\0", b"77777777777\0"],
    ids=["huge", "-1", "-256", "8G"],
)
@pytest.mark.parametrize("name", ["a.wav", "a.txt"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"L", b"S"])
def test_sizes_that_can_not_be_are_an_error_at_once(
    tmp_path: Path, pack: Pack, contents: Contents, size: bytes, name: str, kind: bytes
) -> None:
    data = bytearray(pack(tmp_path / "a", [(name, b"a" * 512), ("b.wav", b"b")], "tar").read_bytes())
    data[124:136], data[156:157] = size, kind
    (tmp_path / "a").write_bytes(sealed(data[:512]) + data[512:])
    with pytest.raises(ArchiveError):
        contents(tmp_path / "a", limits=Limits(max_clip_bytes=1 << 62))


def test_changed_headers_raise_only_archive_errors(tmp_path: Path, contents: Contents) -> None:
    entries = [entry("y" * 120 + ".wav", b"data", pax_headers={"GNU.sparse.map": "0,2,3,1", "GNU.sparse.size": "6"})]
    whole = write(tmp_path / "whole", [*entries, entry("a.txt", b"text"), entry("é.wav", b"a" * 600)]).read_bytes()
    heads = [place for place in range(0, len(whole), 512) if whole[place + 257 : place + 262] == b"ustar"]

    @settings(max_examples=250, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4))
    def check(changes: list[tuple[int, int]]) -> None:
        data = bytearray(whole)
        for place, value in changes:
            data[place] = value
        for head in heads:
            data[head : head + 512] = sealed(data[head : head + 512])
        (tmp_path / "changed").write_bytes(data)
        with suppress(ArchiveError):
            contents(tmp_path / "changed", limits=Limits(max_clip_bytes=1 << 24))

    check()


@pytest.mark.parametrize(
    ("kind", "record"),
    [(b"x", b"99999999999999999999 path=x\n"), (b"x", b"21 hdrcharset=BIN\xff\xff\n"), (b"S", b"")],
)
def test_a_header_that_tarfile_stumbles_over_is_an_error(
    tmp_path: Path, contents: Contents, kind: bytes, record: bytes
) -> None:
    header = bytearray(entry("a.wav", record)[0].tobuf()[:512])
    header[156:157], header[482] = kind, 1
    (tmp_path / "a").write_bytes(sealed(header) + record.ljust(512 if record else 0, b"\0"))
    with pytest.raises(ArchiveError, match="damaged header"):
        contents(tmp_path / "a")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_extension_headers_are_never_large(tmp_path: Path, contents: Contents, kind: bytes) -> None:
    path = write(tmp_path / "a", [entry("x", bytes(2 << 20), type=kind), entry("a.wav")])
    with pytest.raises(ArchiveError, match="about the next one"):
        contents(path)


def test_a_chain_of_headers_is_an_error(tmp_path: Path, contents: Contents) -> None:
    header = bytearray(tarfile.TarInfo("x").tobuf()[:512])
    header[156:157] = b"L"
    (tmp_path / "a").write_bytes(sealed(header) * 5000)
    with pytest.raises(ArchiveError):
        contents(tmp_path / "a")


def test_a_clip_over_the_limit_is_rejected_with_the_setting(tmp_path: Path, contents: Contents) -> None:
    path = write(tmp_path / "a", [entry("a.wav", bytes(8)), entry("b.wav", bytes(7))])
    large, small = contents(path, limits=Limits(max_clip_bytes=7))
    assert "max_clip_gib" in str(large[1])
    assert small == ("b.wav", bytes(7))


@pytest.mark.parametrize("name", ["a.wav", "a.bin"])
def test_an_archive_bomb_is_refused(
    tmp_path: Path, pack: Pack, contents: Contents, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = pack(tmp_path / "a", [(name, bytes(5 << 20))] * 3 + [("b.wav", b"")], "tar.gz")
    assert contents(path)[-1] == ("b.wav", b"")
    monkeypatch.setattr(members_module, "_ALWAYS_ALLOWED", 12 << 20)
    with pytest.raises(ArchiveError, match="max_ratio"):
        contents(path)
    with pytest.raises(ArchiveError, match="max_ratio"):
        clip_names(storage.as_path(path))
    assert contents(path, limits=Limits(max_ratio=2000))[-1] == ("b.wav", b"")


def test_holes_count_with_their_unpacked_size(
    tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = entry("a.wav", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(5 << 20)})
    path = write(tmp_path / "a", [(made, b"")] * 3)
    assert contents(path) == [("a.wav", bytes(5 << 20))] * 3
    monkeypatch.setattr(members_module, "_ALWAYS_ALLOWED", 12 << 20)
    with pytest.raises(ArchiveError, match="max_ratio"):
        contents(path)

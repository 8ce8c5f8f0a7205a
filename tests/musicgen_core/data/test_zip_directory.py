from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from musicgen_core.errors import ArchiveError
from tests.fixture_types import Contents, WriteZip


def test_more_than_4_gib_packed_by_macos_without_zip64_are_read(tmp_path: Path, contents: Contents) -> None:
    """Its offsets start at 0 again. Holes stand for the members between."""
    places = [0, 3 << 30, (4 << 30) + 1000, (7 << 30) + 5, (8 << 30) + 3]
    directory = b""
    with open(tmp_path / "a.zip", "wb") as file:
        for i, place in enumerate(places):
            name, data = f"{i}.wav".encode(), b"clip %d" % i
            fields = (0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
            file.seek(place)
            file.write(b"PK\3\4" + struct.pack("<5H3L2H", 20, *fields) + name + data)
            directory += b"PK\1\2" + struct.pack("<6H3L5H2L", 20, 20, *fields, 0, 0, 0, 0, place % 2**32) + name
        start = file.tell()
        file.write(directory)
        file.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 5, 5, len(directory), start % 2**32, 0))
    assert (tmp_path / "a.zip").stat().st_blocks * 512 < 1 << 20
    assert contents(tmp_path / "a.zip") == [(f"{i}.wav", b"clip %d" % i) for i in range(5)]


def test_more_members_than_the_plain_record_can_count_are_read(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    members = [raw(b"%d.txt" % i, b"") for i in range(65_536)] + [raw(b"a.wav")]
    assert contents(write_zip(tmp_path / "a", members, listed=1)) == [("a.wav", b"content")]


def test_a_directory_that_lacks_members_is_an_error(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    with pytest.raises(ArchiveError, match="lists 1 members, and its end record 2"):
        contents(write_zip(tmp_path / "a", [raw(b"a.wav")], listed=2))


def test_a_part_of_a_split_archive_is_called_that(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    with pytest.raises(ArchiveError, match="split"):
        contents(write_zip(tmp_path / "a", [raw(b"a.wav")], disk=1))


def test_a_zip_behind_a_zip_does_not_hide_the_first(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    data = write_zip(tmp_path / "a", [raw(b"a.wav")]).read_bytes()
    (tmp_path / "b").write_bytes(data + data)
    with pytest.raises(ArchiveError, match="another zip before"):
        contents(tmp_path / "b")


@pytest.mark.parametrize("prepended", [b"MZ a self-extractor", b"#!/bin/sh\n" * 10_000])
def test_data_before_a_zip_are_ignored(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any, prepended: bytes
) -> None:
    path = write_zip(tmp_path / "a", [raw(b"a.wav", b"first"), raw(b"b.wav")])
    path.write_bytes(prepended + path.read_bytes())
    assert contents(path) == [("a.wav", b"first"), ("b.wav", b"content")]


def test_a_zip_that_breaks_off_is_called_that(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    path = write_zip(tmp_path / "a", [raw(b"a.wav")])
    whole = path.read_bytes()
    commented = whole[:-2] + b"\5\0comm"
    for cut in (whole[:-1], whole[:-30], whole[:40], commented):
        path.write_bytes(cut)
        with pytest.raises(ArchiveError, match="it breaks off: there is no zip directory"):
            contents(path)
    path.write_bytes(commented + b"e")
    assert contents(path) == [("a.wav", b"content")]


def test_a_directory_whose_last_entry_goes_beyond_it_is_an_error(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    data = bytearray(write_zip(tmp_path / "a", [raw(b"a.wav")]).read_bytes())
    data[data.index(b"PK\1\2") + 32] = 9  # the size of its comment
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError, match="directory breaks off"):
        contents(tmp_path / "a")


def test_data_after_a_zip_are_ignored(tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any) -> None:
    path = write_zip(tmp_path / "a", [raw(b"a.wav")])
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert contents(path) == [("a.wav", b"content")]


def test_a_malformed_extra_field_costs_nothing(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    members = [raw(b"a.wav", extra=extra) for extra in (b"\1", b"\1\0\xff\xff", b"\x75\x70\2\0\1\0", b"\1\0\0\0\0")]
    assert contents(write_zip(tmp_path / "a", members)) == [("a.wav", b"content")] * 4


@pytest.mark.parametrize(("offset", "value"), [(-6, 10**9), (-10, 10**9), (-10, 10)])
def test_an_end_record_that_points_elsewhere_is_an_error(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any, offset: int, value: int
) -> None:
    data = bytearray(write_zip(tmp_path / "a", [raw(b"a.wav")]).read_bytes())
    struct.pack_into("<L", data, len(data) + offset, value)
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArchiveError, match="can't be read as a zip"):
        contents(tmp_path / "a")


# Names


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "cp437"])
def test_names_are_read_as_they_were_meant(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any, encoding: str
) -> None:
    names = ["Größe.wav", "ñandú/été.wav", "a.wav"] if encoding == "cp437" else ["花火.wav", "夏/カラオケ.wav", "a.wav"]
    members = [raw(name.encode(encoding)) for name in names]
    members.append(raw("é.wav".encode(), flags=1 << 11))
    assert [name for name, _ in contents(write_zip(tmp_path / "a", members))] == [*names, "é.wav"]


def test_the_unicode_path_field_counts_if_its_crc_matches(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    def field(of: bytes) -> bytes:
        data = b"\1" + zlib.crc32(of).to_bytes(4, "little") + "花火.wav".encode()
        return b"\x75\x70" + len(data).to_bytes(2, "little") + data

    members = [raw(b"__.wav", extra=b"\1\2\1\0x" + field(b"__.wav")), raw(b"renamed.wav", extra=field(b"__.wav"))]
    assert [name for name, _ in contents(write_zip(tmp_path / "a", members))] == ["花火.wav", "renamed.wav"]


def test_the_setting_applies_to_names_without_an_encoding(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    members = [raw("音乐.wav".encode("gbk")), raw("é.wav".encode(), flags=1 << 11), raw(b"\xff\xff.wav")]
    found = contents(write_zip(tmp_path / "a", members), name_encoding="gbk")
    assert [name for name, _ in found] == ["音乐.wav", "é.wav", "\\xff\\xff.wav"]


def test_a_name_flagged_as_utf8_that_is_not_stays_a_clip(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    members = [raw("花火.wav".encode("cp932"), flags=1 << 11), raw(b"a.wav")]
    assert contents(write_zip(tmp_path / "a", members)) == [("花火.wav", b"content"), ("a.wav", b"content")]


def test_no_clip_hides_behind_a_nul(tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any) -> None:
    members = [raw(name) for name in (b"a.wav\0.txt", b"a.txt\0.wav", b"a.wav\0\0", b"a.txt\0")]
    found = contents(write_zip(tmp_path / "a", members))
    assert found == [("a.wav␀.txt", b"content"), ("a.txt␀.wav", b"content"), ("a.wav", b"content")]

from __future__ import annotations

import bz2
import io
import lzma
import stat
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data import members as members_module
from musicgen_core.data.archive import open_archive
from musicgen_core.data.members import DAMAGED, Limits
from musicgen_core.errors import ArchiveError
from tests.fixture_types import Contents, WriteZip

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
ZEROS = 20 << 20
CONTENT = st.binary(max_size=50).filter(lambda content: not content.startswith(b"\0\5\x16\7"))


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return compressor.compress(data) + compressor.flush()


class Pipe(io.FileIO):
    def tell(self) -> int:
        raise OSError


# Reading


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_usual_compression_is_read(tmp_path: Path, contents: Contents, method: int, streamed: bool) -> None:
    """Includes streamed zips, in which sizes follow the content, as when written to a pipe."""
    members = [("a.wav", b"a" * 3_000_000), ("b.wav", bytes(range(256)) * 9000), ("c.wav", b"")]
    with (Pipe if streamed else open)(tmp_path / "a", "wb") as file, zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    assert contents(tmp_path / "a") == members


def test_lzma_is_read_with_and_without_its_end_mark(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    content = bytes(range(256)) * 100
    alone = lzma.compress(content, lzma.FORMAT_ALONE)  # with an end mark, which liblzma always writes
    ended = raw(b"a.wav", content, b"\x09\x14\5\0" + alone[:5] + alone[13:], method=14, flags=2)
    silence = bytes(1000)  # a decoder without the size would return more
    endless = raw(b"b.wav", silence, b"\x09\x14\5\0" + bytes([0, 0, 0, 1, 0]) + lzma_literals(silence), method=14)
    assert contents(write_zip(tmp_path / "a", [ended, endless])) == [("a.wav", content), ("b.wav", silence)]


def lzma_literals(data: bytes) -> bytes:
    """Return an LZMA stream (lc = lp = pb = 0) of literals only and without an end mark, as 7-Zip writes it."""
    low, width, out = 0, 0xFFFFFFFF, bytearray()
    is_match, literal = [1024], [1024] * 256

    def put(probabilities: list[int], place: int, bit: int) -> None:
        nonlocal low, width
        bound = (width >> 11) * probabilities[place]
        if bit:
            low, width = low + bound, width - bound
            probabilities[place] -= probabilities[place] >> 5
        else:
            width = bound
            probabilities[place] += (2048 - probabilities[place]) >> 5
        while width < 1 << 24:
            width <<= 8
            shift()

    def shift() -> None:
        nonlocal low
        if low >> 32:  # carry
            place = len(out) - 1
            while out[place] == 0xFF:
                out[place] = 0
                place -= 1
            out[place] += 1
        out.append(low >> 24 & 0xFF)
        low = (low & 0xFFFFFF) << 8

    for byte in data:
        put(is_match, 0, 0)
        node = 1
        for shifted in range(7, -1, -1):
            bit = byte >> shifted & 1
            put(literal, node, bit)
            node = node << 1 | bit
    for _ in range(4):
        shift()
    return b"\0" + bytes(out)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.text("aé花.\\", max_size=5), CONTENT, st.sampled_from(METHODS)), max_size=5),
    st.binary(max_size=30),
    st.binary(max_size=30).filter(lambda comment: b"PK" not in comment),
)
def test_a_zip_reads_as_zipfile_reads_it(
    tmp_path_factory: pytest.TempPathFactory,
    contents: Contents,
    members: list[tuple[str, bytes, int]],
    prepended: bytes,
    comment: bytes,
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.zip"
    path.write_bytes(b"MZ" + prepended)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
        for i, (name, data, method) in enumerate(members):
            archive.writestr(f"{i}{name}.wav", data, method)
    assert contents(path) == [(f"{i}{name}.wav", data) for i, (name, data, _) in enumerate(members)]


def test_zip64_is_read(tmp_path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    members = [(f"{i}.wav", bytes([i]) * 1000) for i in range(5)]
    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    assert b"PK\6\6" in (tmp_path / "a").read_bytes()
    assert contents(tmp_path / "a") == members


def test_members_lie_in_any_order_and_may_share_their_bytes(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    members = [raw(b"a.wav", b"same"), raw(b"b.wav", b"second"), raw(b"a.wav", b"same", offset=0)]
    assert [data for _, data in contents(write_zip(tmp_path / "a", members))] == [b"same", b"second", b"same"]


# Rejections


def rejections(contents: Contents, path: Path, **options: Any) -> list[str]:
    """Return the reasons of rejections in an archive whose last member is good."""
    *rejected, last = contents(path, **options)
    assert last[1] == b"content"
    assert all(isinstance(reason, str) for _, reason in rejected)
    return [str(reason) for _, reason in rejected]


def test_unsupported_members_are_rejected_and_the_rest_is_read(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    reasons = {
        "encrypted": raw(b"a.wav", flags=1),
        "(deflate64)": raw(b"b.wav", method=9),
        "(WavPack)": raw(b"c.wav", method=97),
        "(of kind 77)": raw(b"d.wav", method=77),
        "(patched)": raw(b"e.wav", flags=1 << 5),
    }
    found = rejections(contents, write_zip(tmp_path / "a", [*reasons.values(), raw(b"good.wav")]))
    assert all(word in reason for word, reason in zip(reasons, found, strict=True))
    assert not any(reason.startswith(DAMAGED) for reason in found)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_and_devices_are_rejected(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any, kind: int
) -> None:
    members = [raw(b"link.wav", b"/etc/passwd", mode=kind | 0o777), raw(b"good.wav", mode=stat.S_IFREG | 0o644)]
    (reason,) = rejections(contents, write_zip(tmp_path / "a", members))
    assert "a link or a device" in reason


def test_a_folder_is_no_clip(tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any) -> None:
    members = [raw(b"folder.wav/", b"", mode=stat.S_IFDIR), raw(b"folder.wav/a.wav")]
    assert contents(write_zip(tmp_path / "a", members)) == [("folder.wav/a.wav", b"content")]


DAMAGES: dict[str, dict[str, Any]] = {
    "CRC": {"crc": 1},
    "7 of 8 bytes": {"size": 8},
    "more than the 6 bytes": {"size": 6},
    "header and the directory disagree": {"local_name": b"x.wav"},
    "the directory disagree": {"local_method": 8},
    "isn't where the directory says": {"offset": 3},
    "where the directory says": {"offset": 2**32 - 2},
    "10 of 10000000 bytes": {"method": 8, "packed": deflated(b"a" * 10), "size": 10_000_000},
    "more than the 10 bytes": {"method": 8, "packed": deflated(b"a" * 11), "size": 10},
    "0 of 7 bytes": {"method": 8, "packed": b""},
    "while decompressing": {"method": 8, "packed": b"\xff" * 50},
    "Invalid data stream": {"method": 12, "packed": b"\xff" * 50},
    "3 of 7 bytes": {"method": 8, "packed": b"\0\3\0\xfc\xff" + b"abc"},
    "LZMA header": {"method": 14, "packed": b"\0\0\7\0" + bytes(50)},
    "LZMA header is not valid": {"method": 14, "packed": b""},
    "Corrupt input data": {"method": 14, "packed": b"\0\0\5\0\x5d" + b"\xff" * 50},
    "beyond the end of the archive": {"method": 8, "packed_size": 500},
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damaged_members_are_rejected_and_the_rest_is_read(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any, reason: str
) -> None:
    path = write_zip(tmp_path / "a", [raw(b"a.wav", **DAMAGES[reason]), raw(b"good.wav")])
    (found,) = rejections(contents, path)
    assert found.startswith(DAMAGED) and reason in found


# Bombs


def test_a_clip_over_the_limit_is_rejected_with_the_setting(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any
) -> None:
    members = [raw(b"a.wav", bytes(8)), raw(b"good.wav", b"content")]
    (reason,) = rejections(contents, write_zip(tmp_path / "a", members), limits=Limits(max_clip_bytes=7))
    assert "max_clip_gib" in reason


@pytest.mark.parametrize(
    ("method", "packed"),
    [
        (8, deflated(bytes(ZEROS))),
        (12, bz2.compress(bytes(ZEROS))),
        (14, lzma.compress(bytes(ZEROS), lzma.FORMAT_ALONE)),
    ],
    ids=["deflate", "bzip2", "lzma"],
)
def test_a_member_larger_than_declared_is_stopped_at_once(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any, method: int, packed: bytes
) -> None:
    if method == 14:
        packed = b"\x09\x14\5\0" + packed[:5] + packed[13:]
    member = raw(b"a.wav", method=method, packed=packed, size=1000, flags=2)
    path = write_zip(tmp_path / "a", [member, raw(b"good.wav")])
    tracemalloc.start()
    (reason,) = rejections(contents, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "more than the 1000 bytes" in reason
    assert peak < 8 << 20


def test_an_archive_bomb_is_refused(
    tmp_path: Path, contents: Contents, write_zip: WriteZip, raw: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros = bytes(5 << 20)
    members = [raw(f"{i}.wav".encode(), zeros, deflated(zeros), method=8) for i in range(4)]
    path = write_zip(tmp_path / "a", members)
    assert len(contents(path)) == 4  # small archives may hold much silence
    monkeypatch.setattr(members_module, "_ALWAYS_ALLOWED", 12 << 20)
    with open_archive(path) as archive:
        first, second, third, _ = archive.clips()
        first.open().close()
        second.open().close()
        with pytest.raises(ArchiveError, match="max_ratio"):
            third.open()
    assert len(contents(path, limits=Limits(max_ratio=2000))) == 4

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core import storage
from musicgen_core.data import members as members_module
from musicgen_core.data.archive import Limits, clip_names, open_archive
from musicgen_core.errors import ArchiveError
from tests.musicgen_core.conftest import pack_zstd

Pack = Callable[..., Path]
Contents = Callable[..., list[tuple[str, bytes | str]]]
CLIPS = [("audio/b.wav", b"beta" * 700), ("audio/a.WAV", b"alpha"), ("deep/er/c.wav", b"")]
FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
ZSTD = base64.b64decode(
    "KLUv/WQAJyUCAOLCCQ/A62TXTjm6uruLx0+/cil9OeZVmah36Cqt1leC6OC6wkUcLnsDDwsgsJkH94Wv5ymMAWD/n2mPDuCAQQNspwAHlpKK0A=="
)
"""A tar of `a.wav` as the program zstd compresses it, with a checksum"""
GNU_TAR = shutil.which("tar") and b"GNU tar" in subprocess.run(["tar", "--version"], capture_output=True).stdout


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for field, value in fields.items():
        setattr(made, field, value)
    return made, data


def write(path: Path, entries: Sequence[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for made, data in entries:
            tar.addfile(made, io.BytesIO(data))
    return path


def sealed(header: bytearray) -> bytes:
    """Return the header with a valid checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


# Kinds of members


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read(tmp_path: Path, contents: Contents, form: int) -> None:
    names = ["a.wav", "x" * 60 + "/" + "y" * 90 + ".wav"] + (["z" * 300 + ".wav"] if form else [])
    assert contents(write(tmp_path / "a", [entry(name, b"data") for name in names], form)) == [
        (name, b"data") for name in names
    ]


def test_links_and_devices_are_rejected_and_the_rest_is_read(tmp_path: Path, contents: Contents) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"M"]
    entries = [entry(f"{i}.wav", type=kind, linkname="/etc/passwd") for i, kind in enumerate(kinds)]
    path = write(tmp_path / "a", [*entries, entry("folder.wav", type=tarfile.DIRTYPE), entry("good.wav", b"good")])
    *rejected, good = contents(path)
    assert [name for name, _ in rejected] == [f"{i}.wav" for i in range(len(kinds))]
    assert all("a link or a device" in str(reason) for _, reason in rejected)
    assert good == ("good.wav", b"good")


@pytest.mark.skipif(not GNU_TAR, reason="needs GNU tar")
@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"]
)
def test_sparse_members_are_read_with_their_holes(tmp_path: Path, contents: Contents, form: str) -> None:
    with open(tmp_path / "a.wav", "wb") as file:
        for i in range(30):
            file.seek(i * 65_536)
            file.write(b"piece %d" % i)
        file.truncate(3 << 20)
    (tmp_path / "b.wav").write_bytes(b"next")
    kind, *version = form.split()
    command = ["tar", "-C", tmp_path, "-S", "-cf", tmp_path / "a.tar", f"--format={kind}", *version, "a.wav", "b.wav"]
    subprocess.run(command, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20
    assert contents(tmp_path / "a.tar") == [("a.wav", (tmp_path / "a.wav").read_bytes()), ("b.wav", b"next")]


def test_a_zip_inside_a_tar_does_not_make_the_tar_a_zip(tmp_path: Path, pack: Pack, contents: Contents) -> None:
    inner = pack(tmp_path / "inner.zip", [("inner.wav", b"inner")]).read_bytes()
    path = pack(tmp_path / "outer.tar", [*CLIPS, ("inner.zip", inner)], "tar")
    assert contents(path) == CLIPS
    data = bytearray(path.read_bytes())
    data[257:265] = bytes(8)  # as before POSIX
    (tmp_path / "old.tar").write_bytes(sealed(data[:512]) + data[512:])
    assert contents(tmp_path / "old.tar") == CLIPS


# Names


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "花火.wav"), ("cp932", "花火.wav"), ("cp437", "Größe.wav")])
def test_names_are_read_as_they_were_meant(
    tmp_path: Path, contents: Contents, encoding: str, name: str, form: int
) -> None:
    raw_name = name.encode(encoding).decode("utf-8", "surrogateescape")
    names = [name for name, _ in contents(write(tmp_path / "a", [entry(raw_name), entry("é.wav")], form))]
    assert names == [name, "é.wav"]


def test_the_setting_applies_except_to_names_declared_as_utf8(tmp_path: Path, contents: Contents) -> None:
    raw_name = "音乐.wav".encode("gbk").decode("utf-8", "surrogateescape")
    path = write(tmp_path / "a", [entry(raw_name), entry("é.wav", pax_headers={"path": "é.wav"})], tarfile.GNU_FORMAT)
    assert contents(path, name_encoding="gbk")[0][0] == "音乐.wav"
    path = write(tmp_path / "a", [entry("é.wav")], tarfile.PAX_FORMAT)
    assert contents(path, name_encoding="gbk")[0][0] == "é.wav"


def test_no_clip_hides_behind_a_nul(tmp_path: Path, contents: Contents) -> None:
    entries = [entry("x", b"data", pax_headers={"path": name}) for name in ("a.wav\0.txt", "a.txt\0.wav")]
    assert contents(write(tmp_path / "a", entries)) == [("a.wav␀.txt", b"data"), ("a.txt␀.wav", b"data")]


# Its end


@pytest.mark.parametrize("kept", [0, 1, 511])
def test_a_tar_without_its_end_mark_breaks_off(tmp_path: Path, pack: Pack, contents: Contents, kept: int) -> None:
    path = pack(tmp_path / "a", [("a.wav", b"a" * 512)], "tar")
    path.write_bytes(path.read_bytes()[: 1024 + kept])
    with pytest.raises(ArchiveError, match="no end mark"):
        contents(path)


def test_one_block_of_zeros_is_an_end_mark(tmp_path: Path, pack: Pack, contents: Contents) -> None:
    path = pack(tmp_path / "a", [("a.wav", b"a" * 512)], "tar")
    path.write_bytes(path.read_bytes()[: 1024 + 512])
    assert contents(path) == [("a.wav", b"a" * 512)]


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_a_compressed_tar_is_verified_to_the_end_of_its_stream(
    tmp_path: Path, pack: Pack, contents: Contents, module: ModuleType
) -> None:
    data = bytearray(module.compress(pack(tmp_path / "a.tar", CLIPS, "tar").read_bytes() + bytes(3_000_000)))
    data[-5 if module is gzip else -14] ^= 1  # within its last checksum
    (tmp_path / "b.tar").write_bytes(data)
    with pytest.raises(ArchiveError):
        contents(tmp_path / "b.tar")
    with pytest.raises(ArchiveError):
        clip_names(storage.as_path(tmp_path / "b.tar"))


def test_the_checksum_of_zstandard_is_verified(tmp_path: Path, contents: Contents) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(ZSTD)
    assert contents(path) == [("a.wav", b"alpha")]
    path.write_bytes(ZSTD[:-1] + bytes([ZSTD[-1] ^ 1]))
    with pytest.raises(ArchiveError, match="checksum"):
        contents(path)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, pack_zstd])
def test_compression_in_several_streams_is_read_to_the_end(
    tmp_path: Path, pack: Pack, contents: Contents, compress: Callable[[bytes], bytes]
) -> None:
    """Such files are written by pbzip2, bgzip and pzstd."""
    plain = pack(tmp_path / "a.tar", CLIPS, "tar").read_bytes()
    half = len(plain) // 2
    (tmp_path / "b.tar").write_bytes(compress(plain[:half]) + compress(plain[half:]))
    assert contents(tmp_path / "b.tar") == CLIPS


def test_nothing_behind_the_end_mark_is_passed_over_in_silence(tmp_path: Path, pack: Pack, contents: Contents) -> None:
    data = pack(tmp_path / "a", CLIPS, "tar").read_bytes()
    (tmp_path / "two").write_bytes(data + data)
    with pytest.raises(ArchiveError, match="several tars"):
        contents(tmp_path / "two")
    (tmp_path / "hole").write_bytes(data[: data.index(b"alpha") - 512] + bytes(512) + data[data.index(b"alpha") :])
    with pytest.raises(ArchiveError, match="damaged"):
        contents(tmp_path / "hole")


# Damage and bombs


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


def test_a_member_is_kept_until_it_is_opened_from_wherever(tmp_path: Path, pack: Pack) -> None:
    with open_archive(pack(tmp_path / "a", CLIPS, "tar.gz")) as archive:
        members = list(archive.clips())
        for member, (name, data) in reversed(list(zip(members, CLIPS, strict=True))):
            with member.open() as file:
                assert (member.name, file.read()) == (name, data)

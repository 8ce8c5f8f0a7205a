"""The end of a tar: its mark, what follows it, checksums of compressed streams."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from musicgen_core import storage
from musicgen_core.data.archive import clip_names
from musicgen_core.errors import ArchiveError
from tests.fixture_types import Contents, Pack
from tests.musicgen_core.conftest import pack_zstd
from tests.musicgen_core.data.tar_entries import CLIPS

ZSTD = base64.b64decode(
    "KLUv/WQAJyUCAOLCCQ/A62TXTjm6uruLx0+/cil9OeZVmah36Cqt1leC6OC6wkUcLnsDDwsgsJkH94Wv5ymMAWD/n2mPDuCAQQNspwAHlpKK0A=="
)
"""A tar of `a.wav` as the program zstd compresses it, with a checksum"""


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

"""Any damaged file leads to an ArchiveError or a rejection, and a truncated one is never read as complete."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import clip_names, content_digest, open_archive
from musicgen_core.errors import ArchiveError
from tests.fixture_types import Contents, Pack

KINDS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]


def count_damaged(path: UPath) -> int:
    with open_archive(path) as archive:
        return archive.count_damaged(["a.wav", "b.wav"])


def noise(seed: int, size: int = 3000) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive_is_never_read_as_complete(
    tmp_path: Path, pack: Pack, contents: Contents, kind: str
) -> None:
    inner = pack(tmp_path / "inner", [("inner.wav", b"inner")]).read_bytes()
    members = [("a.wav", noise(1)), ("b.zip", inner), ("b.txt", noise(2)), ("c.wav", noise(3)), ("d.wav", noise(4, 99))]
    whole = pack(tmp_path / "whole", members, kind).read_bytes()
    # A tar needs one block of its end mark; what follows is padding.
    end = whole.rindex(members[-1][1]) + 512 + 512 if kind == "tar" else len(whole)
    around = whole.find(inner) + len(inner)  # in a plain one, where the inner end record ends
    for cut in {
        *range(0, end, 197),
        *range(end - 600, end, 11),
        *range(end - 30, end),
        *range(around - 3, around + 20),
    }:
        if 0 <= cut < end:
            (tmp_path / "cut").write_bytes(whole[:cut])
            with pytest.raises(ArchiveError):
                contents(tmp_path / "cut")


@pytest.mark.parametrize("kind", KINDS)
def test_changed_bytes_raise_only_archive_and_clip_errors(
    tmp_path: Path, pack: Pack, contents: Contents, kind: str
) -> None:
    members = [("a.wav", b"a" * 300), ("b.wav", noise(2, 600)), ("b.txt", b"text"), ("c.wav", b"c")]
    whole = pack(tmp_path / "whole", members, kind).read_bytes()

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)), min_size=1, max_size=3))
    def check(flips: list[tuple[int, int]]) -> None:
        data = bytearray(whole)
        for place, change in flips:
            data[place] ^= change
        (tmp_path / "flipped").write_bytes(data)
        archive = storage.as_path(tmp_path / "flipped")
        for read in (content_digest, clip_names, count_damaged):
            with suppress(ArchiveError):
                read(archive)
        with suppress(ArchiveError):
            found = [data for _, data in contents(archive) if isinstance(data, bytes)]
            # a plain tar holds no checksum of its content, nor does what pyarrow compresses by Zstandard
            assert kind in ("tar", "tar.zst") or all(data in dict(members).values() for data in found)

    check()


@pytest.mark.parametrize(
    "content", [b"", b"no archive", bytes(5000), b"PK\3\4 no zip", b"\x1f\x8b no gzip", b"BZh", b"\xfd7zXZ\0", noise(5)]
)
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, contents: Contents, content: bytes) -> None:
    (tmp_path / "music.zip").write_bytes(content)
    for read in (contents, lambda path: clip_names(storage.as_path(path))):
        with pytest.raises(ArchiveError, match=r"music\.zip can't be read as a zip or tar"):
            read(tmp_path / "music.zip")

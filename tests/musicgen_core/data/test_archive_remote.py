"""Remote archives: their digest, their names, and detection of repaired members."""

from __future__ import annotations

import errno
import os
import time
import uuid
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import ArchiveFile, clip_names, content_digest
from musicgen_core.errors import ArchiveError
from tests.fixture_types import Pack

KINDS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]
CLIPS = [("audio/b.wav", b"beta" * 700), ("audio/a.WAV", b"alpha"), ("deep/er/c.wav", b"")]


def digest(path: Path) -> str:
    return content_digest(storage.as_path(path))


def count_damaged(path: UPath, names: list[str]) -> int:
    with ArchiveFile(path) as file:
        return file.opened.count_damaged(names)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_names_of_a_remote_archive_are_read_where_it_is(tmp_path: Path, bucket: UPath, pack: Pack, kind: str) -> None:
    storage.upload(pack(tmp_path / "a.zip", CLIPS, kind), bucket / "a.zip")
    assert clip_names(bucket / "a.zip") == [name for name, _ in CLIPS]
    assert content_digest(bucket / "a.zip") == digest(tmp_path / "a.zip")


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_does_not_depend_on_the_files_name_or_time(tmp_path: Path, pack: Pack, kind: str) -> None:
    path = pack(tmp_path / "a.zip", CLIPS, kind)
    before = digest(path)
    os.utime(path, (0, 0))
    assert digest(path.rename(tmp_path / "b.tar")) == before


def test_the_digest_of_a_zip_ignores_timestamps(tmp_path: Path) -> None:
    digests = set()
    for year in (1990, 2020):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name, data in CLIPS:
                archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), data)
        digests.add(digest(tmp_path / "a.zip"))
    assert len(digests) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_follows_every_members_content_name_and_order(tmp_path: Path, pack: Pack, kind: str) -> None:
    variants = [CLIPS, CLIPS[::-1], CLIPS[:2], [("audio/x.wav", CLIPS[0][1]), *CLIPS[1:]]]
    variants += [[*CLIPS[:i], (name, data + b"!"), *CLIPS[i + 1 :]] for i, (name, data) in enumerate(CLIPS)]
    changed = [*CLIPS[:1], (CLIPS[1][0], CLIPS[1][1].upper()), *CLIPS[2:]]  # of the same size
    digests = {digest(pack(tmp_path / "a.zip", members, kind)) for members in [*variants, changed]}
    assert len(digests) == len(variants) + 1


class Counted(MemoryFileSystem):
    """File system that counts openings, caches listings, and can simulate network errors."""

    protocol = "counted"
    store: dict[str, Any] = {}  # noqa: RUF012 (as the base class has it)
    pseudo_dirs = [""]  # noqa: RUF012
    opened = 0
    failure: Exception | None = None
    listed: dict[str, Any] = {}  # noqa: RUF012

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Return info from the cached listing, if any, as object stores do."""
        if path not in Counted.listed:
            Counted.listed[path] = super().info(path, **options)
        return Counted.listed[path]

    def invalidate_cache(self, path: str | None = None) -> None:
        Counted.listed.clear()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> MemoryFile:
        Counted.opened += mode == "rb"
        file = super()._open(path, mode, **options)
        if Counted.failure and mode == "rb":
            file = MemoryFile(self, path, file.getvalue())
            file.read = fail  # type: ignore[method-assign]
        return file


def fail(size: int = -1) -> bytes:
    assert Counted.failure
    raise Counted.failure


@pytest.fixture
def remote() -> Iterator[UPath]:
    fsspec.register_implementation("counted", Counted, clobber=True)
    with warnings.catch_warnings(action="ignore"):  # of a kind of storage that UPath doesn't know
        yield UPath(f"counted://{uuid.uuid4().hex}")
    Counted.failure = None


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_and_digest_read_a_file_once_each(tmp_path: Path, remote: UPath, pack: Pack, kind: str) -> None:
    data = pack(tmp_path / "a", CLIPS, kind).read_bytes()
    (remote / "a.zip").write_bytes(data)
    before = Counted.opened
    for _ in range(3):
        clip_names(UPath(str(remote / "a.zip")))
        content_digest(UPath(str(remote / "a.zip")))
    assert Counted.opened == before + 2


def test_a_cached_listing_does_not_hide_a_changed_file(tmp_path: Path, remote: UPath, pack: Pack) -> None:
    for name in ("a.wav", "b.wav"):
        (remote / "a.zip").write_bytes(pack(tmp_path / "a", [(name, b"")]).read_bytes())
        assert clip_names(remote / "a.zip") == [name]


@pytest.mark.parametrize("place", ["local", "remote"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_file_that_changed_is_read_again(tmp_path: Path, bucket: UPath, pack: Pack, kind: str, place: str) -> None:
    folder = storage.as_path(tmp_path) if place == "local" else bucket
    digests = set()
    for name in ("a.wav", "b.wav", "c.wav"):  # of one size; put back in time as a careful copy does
        local = pack(tmp_path / "local", [(name, b"")], kind)
        with (folder / "a").open("wb") as file:
            file.write(local.read_bytes())
        if place == "local":
            os.utime(tmp_path / "a", (0, 0))
        time.sleep(0.01)
        digests.add(content_digest(folder / "a"))
        assert clip_names(folder / "a") == [name]
    assert len(digests) == 3


# Damage that another copy may not have


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_repaired_member_of_a_zip_is_detected_by_reading_it(
    tmp_path: Path, bucket: UPath, pack: Pack, place: str
) -> None:
    path = pack(tmp_path / "a", CLIPS)
    archive = storage.as_path(path) if place == "local" else bucket / "a"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"betabeta", b"betaBETA", 1))
    storage.upload(path, archive)
    damaged = content_digest(archive)
    assert count_damaged(archive, ["audio/b.wav"]) == 1
    assert count_damaged(archive, ["audio/b.wav", "audio/a.WAV"]) == 1
    assert count_damaged(archive, []) == 0
    path.write_bytes(whole)
    storage.upload(path, archive)
    assert content_digest(archive) == damaged
    assert count_damaged(archive, ["audio/b.wav"]) == 0


def test_an_offset_out_of_this_world_is_only_damage(bucket: UPath, write_zip: Pack, raw: Any, tmp_path: Path) -> None:
    far = raw(b"a.wav", extra=b"\1\0\x08\0" + b"\xff" * 8, offset=2**32 - 1)
    storage.upload(write_zip(tmp_path / "a", [far, raw(b"b.wav")]), bucket / "a")
    assert count_damaged(bucket / "a", ["a.wav", "b.wav"]) == 1


def test_named_clips_of_a_tar_are_counted_as_damaged_unread(tmp_path: Path, pack: Pack) -> None:
    assert count_damaged(storage.as_path(pack(tmp_path / "a", CLIPS, "tar")), ["audio/b.wav"]) == 1


# Errors

TROUBLES = [OSError(errno.EIO, "I/O error"), OSError(errno.ESTALE, "stale"), TimeoutError(), ConnectionResetError("x")]


@pytest.mark.parametrize("trouble", [*TROUBLES, RuntimeError("gateway")], ids=repr)
@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_trouble_of_the_network_is_not_taken_for_damage(
    tmp_path: Path, remote: UPath, pack: Pack, kind: str, trouble: Exception
) -> None:
    (remote / "a.zip").write_bytes(pack(tmp_path / "a", CLIPS, kind).read_bytes())
    Counted.failure = trouble
    for read in (content_digest, clip_names, lambda path: count_damaged(path, ["audio/a.WAV"])):
        with pytest.raises(type(trouble)):
            read(remote / "a.zip")


def test_a_missing_remote_file_is_an_archive_error_that_names_it(bucket: UPath) -> None:
    for read in (content_digest, clip_names, lambda path: count_damaged(path, [])):
        with pytest.raises(ArchiveError, match=r"none\.zip can't be opened"):
            read(bucket / "none.zip")

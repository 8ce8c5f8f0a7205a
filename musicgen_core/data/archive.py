"""Archives of clips: told apart by content, read without extracting."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from upath import UPath

from musicgen_core import storage
from musicgen_core.data.damage import DAMAGED, damage_named
from musicgen_core.data.finding import archive_stem, find_archives
from musicgen_core.data.member_names import AUTO, check_encoding
from musicgen_core.data.members import BLOCK, Archive, Limits, Member, Meter, Sidecar, sidecar_key
from musicgen_core.data.tar_archive import TarArchive, is_tar
from musicgen_core.data.zip_archive import ZipArchive, names_of, unpacked
from musicgen_core.data.zip_directory import RandomReader, is_zip, read_directory
from musicgen_core.errors import ArchiveError, ClipRejected

__all__ = [
    "DAMAGED",
    "Archive",
    "Limits",
    "Member",
    "Sidecar",
    "archive_stem",
    "clip_names",
    "content_digest",
    "damaged_members_readable",
    "find_archives",
    "open_archive",
    "sidecar_key",
]

_NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_DEFAULT = Limits()


@contextmanager
def open_archive(path: Path, limits: Limits = _DEFAULT, name_encoding: str = AUTO) -> Iterator[Archive]:
    """Open a local archive.

    Args:
        path: of a zip, a tar, or a tar compressed by gzip, bzip2 or xz, whatever its name.
        limits: bounds against bombs.
        name_encoding: of members' names that don't say theirs: auto, or an encoding that Python knows.

    Raises:
        ArchiveError: the file is not a readable zip or tar.
        ConfigError: `name_encoding` is not known.
    """
    check_encoding(name_encoding)
    with _opened(storage.as_path(path)) as file:
        with damage_named(path.name):
            archive = _read(file, path.name, limits, name_encoding)
        yield archive


def content_digest(archive: UPath) -> str:
    """A hash of an archive's content that doesn't depend on its name, place or times.

    A zip's directory holds the size and CRC-32 of every member, so it stands for the content and costs a few
    reads, also over the network. A tar has no directory: all of it is read, once for each version of the file.

    Raises:
        ArchiveError: the archive can't be read.
    """
    return _content_digest(archive, _version(archive))


def clip_names(archive: UPath, name_encoding: str = AUTO, limits: Limits = _DEFAULT) -> list[str]:
    """The names of an archive's clips. Of a remote zip only its directory is read; of a tar, everything, once.

    Raises:
        ArchiveError: the archive can't be read.
        ConfigError: `name_encoding` is not known.
    """
    check_encoding(name_encoding)
    return list(_clip_names(archive, _version(archive), name_encoding, limits))


def damaged_members_readable(archive: UPath, names: Collection[str], name_encoding: str = AUTO) -> bool:
    """Whether any of these clips, rejected as damaged before, is whole now.

    A zip that was copied again may have the digest of its damaged copy, as its directory is the same. A tar can't,
    so the answer is no.

    Raises:
        ArchiveError: the archive can't be read.
    """
    with _opened(archive) as file, damage_named(archive.name):
        if not _is_zip(file):
            return False
        reader = RandomReader(file)
        entries = read_directory(reader)
        candidates = (e for name, e in zip(names_of(entries, name_encoding), entries, strict=True) if name in names)
        for entry in candidates:
            try:
                for _ in unpacked(entry, reader):
                    pass
            except ClipRejected:
                continue
            return True
        return False


def _read(file: BinaryIO, name: str, limits: Limits, name_encoding: str) -> ZipArchive | TarArchive:
    meter = Meter(name, file.seek(0, os.SEEK_END), limits)
    if _is_zip(file):
        reader = RandomReader(file)
        return ZipArchive(reader, read_directory(reader), meter, name_encoding)
    return TarArchive(file, name, meter, name_encoding)


def _is_zip(file: BinaryIO) -> bool:
    """By the beginning too: a tar whose last member is a zip ends like a zip."""
    file.seek(0)
    head = file.read(512)
    if is_tar(head):
        return False
    return head.startswith(b"PK") or is_zip(RandomReader(file))


@lru_cache(maxsize=1024)
def _content_digest(archive: UPath, version: str) -> str:
    digest = hashlib.sha256()
    with _opened(archive) as file, damage_named(archive.name):
        if _is_zip(file):
            for entry in read_directory(RandomReader(file)):
                digest.update(b"%b\0%d\0%d\n" % (entry.raw_name, entry.size, entry.crc))
        else:
            file.seek(0)
            while block := file.read(BLOCK):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


@lru_cache(maxsize=256)
def _clip_names(archive: UPath, version: str, name_encoding: str, limits: Limits) -> tuple[str, ...]:
    with _opened(archive) as file, damage_named(archive.name):
        return tuple(_read(file, archive.name, limits, name_encoding).clip_names())


def _version(archive: UPath) -> str:
    """What the store says of a file that changes whenever the file does.

    Raises:
        ArchiveError: there is none, or it is not for this user to read.
    """
    with _names_missing(archive):
        if storage.is_local(archive):
            status = Path(str(archive)).stat()
            return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        archive.fs.invalidate_cache(archive.path)  # a listing made earlier may be older than the file
        return str(archive.fs.info(archive.path))  # more than ukey(), which over http is the address alone


@contextmanager
def _opened(archive: UPath) -> Iterator[BinaryIO]:
    with _names_missing(archive):
        file = archive.open("rb")
    with file:
        yield file


@contextmanager
def _names_missing(archive: UPath) -> Iterator[None]:
    try:
        yield
    except _NO_FILE as error:
        reason = error.strerror or type(error).__name__
        raise ArchiveError(f"{archive} can't be opened ({reason})", "Check the path and its permissions") from error

"""Archives of clips: recognised by content, read without extracting."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from upath import UPath

from musicgen_core import storage
from musicgen_core.data.damage import DAMAGED, Unreadable, damage_named
from musicgen_core.data.discovery import archive_stem, find_archives, passed_over
from musicgen_core.data.file_signatures import recognise
from musicgen_core.data.members import BLOCK, Archive, Limits, Member, Meter, Sidecar, Sidecars, limits_of, sidecar_key
from musicgen_core.data.tar_archive import TarArchive, is_tar
from musicgen_core.data.zip_archive import ZipArchive, names_of, unpacked
from musicgen_core.data.zip_directory import RandomReader, ZipEntry, read_directory
from musicgen_core.errors import ArchiveError, ClipRejected
from musicgen_core.language import message
from musicgen_core.texts import AUTO, check_encoding

__all__ = [
    "DAMAGED",
    "Archive",
    "Limits",
    "Member",
    "Sidecar",
    "Sidecars",
    "archive_stem",
    "choose_archives",
    "clip_names",
    "content_digest",
    "count_damaged",
    "find_archives",
    "limits_of",
    "open_archive",
    "read_archive",
    "read_sidecars",
    "sidecar_key",
    "without_copies",
]

_NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_DEFAULT = Limits()


@contextmanager
def open_archive(path: Path, limits: Limits = _DEFAULT, name_encoding: str = AUTO) -> Iterator[Archive]:
    """Open a local archive.

    Args:
        path: a zip, a tar, or a tar compressed by gzip, bzip2, xz or Zstandard, whatever its name.
        limits: limits against archive bombs.
        name_encoding: encoding of member names that don't declare one: auto, or an encoding that Python knows.

    Raises:
        ArchiveError: the file is not a readable zip or tar.
        ConfigError: `name_encoding` is unknown.
    """
    check_encoding(name_encoding)
    with _opened(storage.as_path(path)) as file:
        yield read_archive(file, path.name, limits, name_encoding)


def content_digest(archive: UPath) -> str:
    """Return a hash of an archive's content that doesn't depend on its name, location or timestamps.

    A zip's directory holds the size and CRC-32 of every member. It represents the content and costs a few reads, also
    over the network. A tar has no directory: the storage's own checksum is used, or all of it is read once for each
    version of the file.

    Raises:
        ArchiveError: the archive can't be read.
    """
    return _content_digest(archive, _version(archive))


def choose_archives(location: storage.Location) -> tuple[list[UPath], list[str]]:
    """Return the archives of a location without duplicates, and sentences on what is left out.

    Raises:
        ArchiveError: no archive was found, or two have the same stem.
    """
    archives, copies = without_copies(find_archives(location))
    return archives, [*passed_over(location), *copies]


def without_copies(archives: Sequence[UPath]) -> tuple[list[UPath], list[str]]:
    """Return archives without duplicates of earlier ones, and a sentence on each that is left out.

    Only archives of equal size are compared, and byte for byte only if their digests are equal: a damaged zip may have
    the same directory as its undamaged copy. The copy with the longer name, such as `x (1).zip`, is dropped.
    """
    by_size: dict[int, list[UPath]] = {}
    for archive in archives:
        by_size.setdefault(archive.stat().st_size, []).append(archive)
    copies: dict[UPath, UPath] = {}
    for alike in by_size.values():
        originals: dict[str, list[UPath]] = {}
        for archive in sorted(alike, key=lambda path: (len(path.name), path.name)) if len(alike) > 1 else ():
            try:
                digest = content_digest(archive)
            except ArchiveError:
                continue  # its task reports the problem
            known = originals.setdefault(digest, [])
            if original := next((one for one in known if _has_the_bytes_of(one, archive)), None):
                copies[archive] = original
            else:
                known.append(archive)
    remarks: list[str] = [
        message("{copy} is left out: it holds the same as {original}", copy=copy.name, original=original.name)
        for copy, original in copies.items()
    ]
    return [archive for archive in archives if archive not in copies], remarks


def _has_the_bytes_of(one: UPath, other: UPath) -> bool:
    """Return whether two archives of one size are the same, byte for byte."""
    checksums = [_stored_checksum(one), _stored_checksum(other)]
    if None not in checksums:
        return checksums[0] == checksums[1]
    with _opened(one) as first, _opened(other) as second:
        return all(block == second.read(BLOCK) for block in iter(lambda: first.read(BLOCK), b""))


def clip_names(archive: UPath, name_encoding: str = AUTO, limits: Limits = _DEFAULT) -> list[str]:
    """Return the names of an archive's clips. Of a remote zip only the directory is read; a tar is read whole, once.

    Raises:
        ArchiveError: the archive can't be read.
        ConfigError: `name_encoding` is unknown.
    """
    check_encoding(name_encoding)
    return list(_clip_names(archive, _version(archive), name_encoding, limits))


def read_sidecars(archive: UPath, name_encoding: str = AUTO, limits: Limits = _DEFAULT) -> Sidecars:
    """Return the descriptions beside an archive's clips. Of a remote zip only those and the directory are read.

    Raises:
        ArchiveError: the archive can't be read.
    """
    with _opened(archive) as file:
        return read_archive(file, archive.name, limits, name_encoding).read_sidecars()


def count_damaged(archive: UPath, names: Collection[str], name_encoding: str = AUTO) -> int:
    """Return how many of the named clips can't be read whole now.

    A fresh copy of a damaged zip may have the same digest, as its directory is the same. A tar has another digest, so
    it isn't read, and all named clips are counted as damaged.

    Raises:
        ArchiveError: the archive can't be read.
    """
    with _opened(archive) as file, damage_named(archive.name):
        if not _is_zip(file, archive.name):
            return len(names)
        reader = RandomReader(file)
        entries = read_directory(reader)
        asked = [e for name, e in zip(names_of(entries, name_encoding), entries, strict=True) if name in names]
        return sum(not _is_readable(entry, reader) for entry in asked)


def _is_readable(entry: ZipEntry, reader: RandomReader) -> bool:
    try:
        for _ in unpacked(entry, reader):
            pass
    except ClipRejected:
        return False
    return True


def read_archive(
    file: BinaryIO, name: str, limits: Limits = _DEFAULT, name_encoding: str = AUTO
) -> ZipArchive | TarArchive:
    """Return the archive in an open file. A remote file may be read from one thread only.

    Raises:
        ArchiveError: the file is not an archive.
    """
    with damage_named(name):
        size = file.seek(0, os.SEEK_END)
        meter = Meter(name, size, limits)
        if not size:
            raise Unreadable(message("it is empty"))
        if _is_zip(file, name):
            reader = RandomReader(file)
            return ZipArchive(reader, read_directory(reader), meter, name_encoding)
        return TarArchive(file, name, meter, name_encoding)


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(512)


def _is_zip(file: BinaryIO, name: str) -> bool:
    """Return whether to read a file as a zip: it may begin with anything but a tar, whose last member may be a zip.

    Raises:
        ArchiveError: the file is known to be something else.
    """
    head = _head(file)
    if known := recognise(head):
        raise ArchiveError(
            message("{name} can't be read as a zip or tar archive: {reason}", name=name, reason=known[0]), known[1]
        )
    return not is_tar(head)


@lru_cache(maxsize=1024)
def _content_digest(archive: UPath, version: str) -> str:
    digest = hashlib.sha256()
    with _opened(archive) as file, damage_named(archive.name):
        if _is_zip(file, archive.name):
            for entry in read_directory(RandomReader(file)):
                reading = f"{entry.name}\0{entry.flags}\0{entry.method}\0{entry.file_type}"  # may lead to a rejection
                digest.update(b"%b\0%d\0%d\0%b\n" % (entry.raw_name, entry.size, entry.crc, reading.encode()))
        elif checksum := _stored_checksum(archive):
            return checksum
        else:
            file.seek(0)
            while block := file.read(BLOCK):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _stored_checksum(archive: UPath) -> str | None:
    """Return the checksum that Google Cloud Storage keeps of an object's content, if any."""
    if storage.is_local(archive):
        return None
    info = archive.fs.info(archive.path)
    checksum = info.get("md5Hash") or info.get("crc32c")
    return f"gcs:{info['size']}:{checksum}" if checksum else None


@lru_cache(maxsize=256)
def _clip_names(archive: UPath, version: str, name_encoding: str, limits: Limits) -> tuple[str, ...]:
    with _opened(archive) as file:
        return tuple(read_archive(file, archive.name, limits, name_encoding).clip_names())


def _version(archive: UPath) -> str:
    with _names_missing(archive):
        return storage.version_of(archive)


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
        raise ArchiveError(
            message("{archive} can't be opened ({reason})", archive=archive, reason=reason),
            message("Check the path and its permissions"),
        ) from error

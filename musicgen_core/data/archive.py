"""Archives of clips: found at a location, recognised by content, read without extracting."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, lru_cache, partial
from pathlib import Path, PurePath
from typing import BinaryIO, Self

from upath import UPath

from musicgen_core import storage
from musicgen_core.data.members import BLOCK, Archive, Limits, Meter, Unreadable, damage_named, recognise
from musicgen_core.data.tar_archive import TarArchive, is_tar
from musicgen_core.data.zip_archive import ZipArchive
from musicgen_core.data.zip_directory import RandomReader, read_directory
from musicgen_core.errors import ArchiveError
from musicgen_core.language import as_message, message
from musicgen_core.texts import AUTO, check_encoding
from musicgen_core.wording import joined_sentences, named

_READ = r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz|tar\.zst|tzst)"
_SUFFIX = re.compile(f"{_READ}$", re.IGNORECASE)
_OTHER_KINDS = re.compile(
    r"\.(7z|rar|r\d\d|z\d\d|(zip|7z|rar|tar)\.\d{3}|zst|lz4?|lzma|tlz|lzh|lha|br|z|taz|gz|bz2|tbz|tb2|xz"
    r"|arj|ace|cab|sitx?|iso|dmg)$",
    re.IGNORECASE,
)
_INCOMPLETE = re.compile(rf"{_READ}\.(part|partial|filepart|crdownload|download|opdownload|aria2|tmp)$", re.IGNORECASE)
_PASSED_OVER = {
    _OTHER_KINDS: message("{names} not read, as only zips and tars are: unpack, and pack the files as a zip or tar"),
    _INCOMPLETE: message("{names} not read, as the name is that of an unfinished copy: copy or download again"),
}
_NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_DEFAULT = Limits()
_digests: dict[tuple[UPath, str], str] = {}
"""Digests by archive and version"""


@contextmanager
def open_archive(path: Path | UPath, limits: Limits = _DEFAULT, name_encoding: str = AUTO) -> Iterator[Archive]:
    """Open an archive. A remote one may be read from one thread only.

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


class ArchiveFile:
    """An archive of a task, opened once, when it is first read.

    Args:
        path: the archive, local or remote.
        limits: as for `open_archive`.
        name_encoding: as for `open_archive`.
    """

    def __init__(self, path: UPath, limits: Limits = _DEFAULT, name_encoding: str = AUTO) -> None:
        self.path = path
        self._reading = limits, name_encoding
        self._files = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    @cached_property
    def opened(self) -> Archive:
        """Return the archive, opened where it is.

        Raises:
            ArchiveError: the archive can't be read.
        """
        return self._files.enter_context(open_archive(self.path, *self._reading))

    @cached_property
    def digest(self) -> str:
        """Return the archive's `Archive.digest`, computed once for each version of the file.

        Raises:
            ArchiveError: the archive can't be read.
        """
        version = self.path, _version(self.path)
        if version not in _digests:
            _digests[version] = self.opened.digest(partial(_stored_checksum, self.path))
        return _digests[version]

    @contextmanager
    def staged(self) -> Iterator[tuple[Path, Archive]]:
        """Yield a local file and the archive opened from it; a remote one is downloaded and deleted afterwards.

        Raises:
            ArchiveError: the archive can't be read.
        """
        if storage.is_local(self.path):
            yield Path(str(self.path)), self.opened
            return
        with storage.staged(self.path) as local, open_archive(local, *self._reading) as opened:
            yield local, opened


def content_digest(archive: UPath) -> str:
    """Return a hash of an archive's content, as `Archive.digest` does.

    Raises:
        ArchiveError: the archive can't be read.
    """
    with ArchiveFile(archive) as file:
        return file.digest


def is_archive_name(name: str) -> bool:
    """Return whether a file name has the suffix of an archive."""
    return bool(_SUFFIX.search(name))


def archive_stem(path: UPath | PurePath) -> str:
    """Return the stem of an archive, the name of its shard: `archive_batch_0007.zip` → `archive_batch_0007`."""
    return _SUFFIX.sub("", path.name)


def find_archives(location: storage.Location) -> list[UPath]:
    """Return the archives of a file, a directory (not recursive) or a glob, in natural order.

    Raises:
        ArchiveError: no archive was found, or two have the same stem.
    """
    path = storage.as_path(location)
    if path.is_dir():
        found = _visible(entry for entry in path.iterdir() if _SUFFIX.search(entry.name) and entry.is_file())
    elif path.is_file():
        found = [path]
    else:
        found = _visible(storage.glob(location)) if re.search(r"[*?\[]", str(location)) else []
    if not found:
        raise ArchiveError(
            message(
                "no archives found at {location}{others}",
                location=location,
                others=joined_sentences(["", *passed_over(location)]),
            ),
            message(
                "Give a file, a directory that holds .zip or .tar archives, or a glob such as "
                "'data/archive_batch_*.zip'"
            ),
        )
    stems: dict[str, UPath] = {}
    for archive in found:
        twin = stems.setdefault(archive_stem(archive), archive)
        if twin is not archive:
            raise ArchiveError(
                message(
                    "{first} and {second} at {location} would both make the shard {stem}",
                    first=twin.name,
                    second=archive.name,
                    location=location,
                    stem=archive_stem(archive),
                ),
                message("Rename or move one of them"),
            )
    return sorted(found, key=lambda archive: (_natural(archive.name), archive.name))


def passed_over(location: storage.Location) -> list[str]:
    """Return sentences on ignored files of a directory that look like archives, with advice."""
    path = storage.as_path(location)
    if not path.is_dir():
        return []
    names = sorted(entry.name for entry in _visible(path.iterdir()) if not _SUFFIX.search(entry.name))
    remarks: list[str] = []
    for pattern, sentence in _PASSED_OVER.items():
        if found := [name for name in names if pattern.search(name) and (path / name).is_file()]:
            values = {"names": named(found)}
            remarks.append(as_message(sentence.format(**values), sentence, values))
    return remarks


def _visible(paths: Iterable[UPath]) -> list[UPath]:
    """Return the paths without macOS's `._archive.zip` files, which aren't archives."""
    return [path for path in paths if not path.name.startswith(".")]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


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
    return list(_clip_names(archive, _version(archive), name_encoding, limits))


def read_archive(file: BinaryIO, name: str, limits: Limits = _DEFAULT, name_encoding: str = AUTO) -> Archive:
    """Return the archive in an open file, recognised by its first bytes: whatever is no tar is read as a zip.

    A zip may begin with anything but a tar, whose last member may be a zip.

    Raises:
        ArchiveError: the file is not an archive.
    """
    with damage_named(name):
        meter = Meter(name, file.seek(0, os.SEEK_END), limits)
        file.seek(0)
        head = file.read(512)
        if not head:
            raise Unreadable(message("it is empty"))
        if known := recognise(head):
            raise ArchiveError(
                message("{name} can't be read as a zip or tar archive: {reason}", name=name, reason=known[0]), known[1]
            )
        if is_tar(head):
            return TarArchive(file, head, name, meter, name_encoding)
        reader = RandomReader(file)
        return ZipArchive(reader, read_directory(reader), meter, name_encoding)


def _stored_checksum(archive: UPath) -> str | None:
    """Return the checksum that Google Cloud Storage keeps of an object's content, if any."""
    if storage.is_local(archive):
        return None
    info = archive.fs.info(archive.path)
    checksum = info.get("md5Hash") or info.get("crc32c")
    return f"gcs:{info['size']}:{checksum}" if checksum else None


@lru_cache(maxsize=256)
def _clip_names(archive: UPath, version: str, name_encoding: str, limits: Limits) -> tuple[str, ...]:
    with open_archive(archive, limits, name_encoding) as opened:
        return tuple(opened.clip_names())


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

"""Archives of clips: found by place, told apart by content, read without extracting."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ArchiveError, ClipRejected

_SUFFIX = re.compile(r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz)$", re.IGNORECASE)
_UNREADABLE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
_Open = Callable[[Any], Any]
_DECOMPRESSORS: dict[bytes, _Open] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by magic


@dataclass(frozen=True)
class Member:
    """A `.wav` of an archive.

    Attributes:
        name: its path inside the archive.
        read: gives its bytes, or raises ClipRejected. Valid only until the next member is asked for.
    """

    name: str
    read: Callable[[], bytes]


def archive_stem(path: UPath) -> str:
    """`archive_batch_0007.zip` → `archive_batch_0007`, the name of its shard."""
    return _SUFFIX.sub("", path.name)


def find_archives(location: storage.Location) -> list[UPath]:
    """The archives that a file, a directory (not recursive) or a glob names, in natural order.

    Raises:
        ArchiveError: none found, or two of one stem.
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
            f"no archives found at {location}",
            "Give a file, a directory that holds .zip or .tar archives, or a glob such as 'data/archive_batch_*.zip'",
        )
    stems: dict[str, UPath] = {}
    for archive in found:
        twin = stems.setdefault(archive_stem(archive), archive)
        if twin is not archive:
            raise ArchiveError(
                f"{twin.name} and {archive.name} at {location} would both make the shard {archive_stem(archive)}",
                "Rename or move one of them",
            )
    return sorted(found, key=lambda archive: (_natural(archive.name), archive.name))


def _visible(paths: Iterable[UPath]) -> list[UPath]:
    """Without macOS's `._archive.zip`, which hold no archives."""
    return [path for path in paths if not path.name.startswith(".")]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def iterate_clips(path: Path) -> Iterator[Member]:
    """Every member of a local archive whose name ends in `.wav` (any case), in the archive's order.

    Raises:
        ArchiveError: the file is not a readable zip or tar, or breaks off.
    """
    try:
        with open(path, "rb") as file:
            yield from _iterate(file)
    except _UNREADABLE as error:
        raise _unreadable(path.name, error) from error


def _iterate(file: BinaryIO) -> Iterator[Member]:
    if _is_zip(file):
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if _is_clip(info.filename) and not info.is_dir():
                    yield Member(info.filename, partial(_read_zip_member, archive, info))
        return
    # A stream: a tar has no directory, and seeking back in a compressed one would decompress it again.
    stream = _decompressed(file)
    with tarfile.open(
        fileobj=stream, mode="r|", tarinfo=_StrictTarInfo, encoding="utf-8", errors="backslashreplace"
    ) as tar:
        for entry in tar:
            if _is_clip(entry.name) and not entry.isdir():
                yield Member(entry.name, partial(_read_tar_member, tar, entry))
        if not tar.getmembers():  # a file of zeros, as a broken copy leaves, is an empty tar
            raise tarfile.ReadError("it is empty")
    while stream.read(1 << 20):  # to its end, where a compressed stream is checked
        pass


def _is_zip(file: BinaryIO) -> bool:
    """By the beginning too: a tar whose last member is a zip ends like a zip."""
    file.seek(0)
    head = file.read(262)
    return not (head.startswith(tuple(_DECOMPRESSORS)) or head[257:] == b"ustar") and zipfile.is_zipfile(file)


def _decompressed(file: BinaryIO) -> BinaryIO:
    """tarfile's own decompression takes a stream that breaks off for its end, and reads only the first of several."""
    file.seek(0)
    head = file.read(6)
    file.seek(0)
    for magic, open_stream in _DECOMPRESSORS.items():
        if head.startswith(magic):
            return cast(BinaryIO, open_stream(file))
    return file


class _StrictTarInfo(tarfile.TarInfo):
    """A damaged header is an error. tarfile takes all but the first for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):  # an archive ends with zeros, or just ends
                raise tarfile.ReadError(f"damaged header: {error}") from error
            raise


def _is_clip(name: str) -> bool:
    return name.lower().endswith(".wav")


def _read_zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        return archive.read(info)
    except RuntimeError as error:  # zipfile's way of saying "encrypted"
        raise ClipRejected(f"encrypted or unsupported in the archive ({error})") from error
    except _UNREADABLE as error:
        raise ClipRejected(f"damaged in the archive ({error})") from error


def _read_tar_member(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    if not entry.isreg():
        raise ClipRejected("not a regular file but a link or a device, which is never followed")
    extracted = tar.extractfile(entry)
    assert extracted is not None  # a regular file
    try:
        data = extracted.read()
        if len(data) < entry.size:
            raise EOFError(f"{entry.name} breaks off after {len(data)} of {entry.size} bytes")
    except _UNREADABLE as error:  # nothing behind this point of a stream can be read either
        raise ArchiveError(f"the tar archive is damaged ({error})", "Copy or pack the archive again") from error
    return data


def content_digest(archive: UPath) -> str:
    """A hash of an archive's content that doesn't depend on its name, place or times.

    A zip's directory holds the size and CRC-32 of every member, so it stands for the content and costs a few
    reads, also over the network. A tar has no directory: all of it is read.

    Raises:
        ArchiveError: the archive can't be read.
    """
    digest = hashlib.sha256()
    try:
        with archive.open("rb") as file:
            if _is_zip(file):
                with zipfile.ZipFile(file) as opened:
                    for info in opened.infolist():
                        digest.update(f"{info.filename}\0{info.file_size}\0{info.CRC}\n".encode())
            else:
                file.seek(0)
                while block := file.read(1 << 20):
                    digest.update(block)
    except _UNREADABLE as error:
        raise _unreadable(archive.name, error) from error
    return f"sha256:{digest.hexdigest()}"


def clip_names(archive: UPath) -> list[str]:
    """The names of an archive's clips. Of a remote zip only its directory is read; of a tar, everything.

    Raises:
        ArchiveError: the archive can't be read.
    """
    try:
        with archive.open("rb") as file:
            return [member.name for member in _iterate(file)]
    except _UNREADABLE as error:
        raise _unreadable(archive.name, error) from error


def _unreadable(name: str, error: Exception) -> ArchiveError:
    return ArchiveError(f"{name} can't be read as a zip or tar archive ({error})", "Copy or pack the archive again")

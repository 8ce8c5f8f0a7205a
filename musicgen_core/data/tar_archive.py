"""Read a tar, plain or compressed, in one pass: it has no directory, and seeking back would decompress it again."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import tarfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO, Self, cast

import pyarrow as pa

from musicgen_core.data.members import (
    BLOCK,
    NOT_A_FILE,
    Archive,
    Member,
    Meter,
    Sidecars,
    Unreadable,
    add_sidecar,
    clip_file,
    damage_named,
    is_clip,
    is_sidecar,
)
from musicgen_core.errors import ClipRejected
from musicgen_core.language import message
from musicgen_core.texts import AUTO, decode_name, encoding_of, legible


class _Lent:
    """Wrapper of a file that ignores `close`."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def close(self) -> None:
        pass


def _open_zstd(file: BinaryIO) -> Any:
    """Open Zstandard like the other decompressors: with several frames, and an OSError without errno for damage."""
    return pa.CompressedInputStream(pa.PythonFile(_Lent(file), mode="r"), "zstd")


_DECOMPRESSORS: dict[bytes, Callable[[BinaryIO], Any]] = {  # by magic
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
_ABOUT_NEXT = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
_MAX_ABOUT_NEXT = 1 << 20
_BUFFER = 1 << 16


def is_tar(head: bytes) -> bool:
    """Return whether the first 512 bytes are those of a compressed stream or of a tar's first header."""
    if head.startswith(tuple(_DECOMPRESSORS)):
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


class TarArchive(Archive):
    """An open tar.

    Args:
        file: the archive.
        head: its first bytes.
        archive_name: name for errors.
        meter: counts the unpacked bytes.
        name_encoding: encoding of names that aren't UTF-8; auto guesses for each name.
    """

    clip_count = None

    def __init__(self, file: BinaryIO, head: bytes, archive_name: str, meter: Meter, name_encoding: str) -> None:
        self._file = file
        self._head = head
        self._name = archive_name
        self._meter = meter
        self._name_encoding = name_encoding
        self._sidecars: Sidecars = {}

    def digest(self, stored_checksum: Callable[[], str | None]) -> str:
        if checksum := stored_checksum():
            return checksum
        digest = hashlib.sha256()
        self._file.seek(0)
        while block := self._file.read(BLOCK):
            digest.update(block)
        return f"sha256:{digest.hexdigest()}"

    def clips(self) -> Iterator[Member]:
        with damage_named(self._name):
            for tar, entry, name in self._walk():
                if is_clip(name):
                    yield Member(name, entry.size, self._opener(tar, entry))
                else:
                    self._keep_sidecar(tar, entry, name)

    def clip_names(self) -> Iterator[str]:
        with damage_named(self._name):
            yield from (name for _, _, name in self._walk() if is_clip(name))

    def sidecars(self) -> Sidecars:
        return self._sidecars

    def read_sidecars(self) -> Sidecars:
        with damage_named(self._name):
            for tar, entry, name in self._walk():
                self._keep_sidecar(tar, entry, name)
        return self._sidecars

    def count_damaged(self, names: Collection[str]) -> int:
        return len(names)

    def _keep_sidecar(self, tar: tarfile.TarFile, entry: tarfile.TarInfo, name: str) -> None:
        if is_sidecar(name) and entry.isreg():
            add_sidecar(self._sidecars, name, entry.size, _content(tar, entry))

    def _walk(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str]]:
        self._meter.restart()
        for tar, entry in _entries(_Stream(_decompressed(self._file, self._head), self._meter)):
            if not entry.isdir():
                yield tar, entry, self._decoded(entry)

    def _decoded(self, entry: tarfile.TarInfo) -> str:
        raw_name = entry.name.encode("utf-8", "surrogateescape")
        if "path" in entry.pax_headers and encoding_of([raw_name]) == "utf-8":  # UTF-8 by the format
            return legible(entry.name)
        return decode_name(raw_name, encoding_of([raw_name]) if self._name_encoding == AUTO else self._name_encoding)

    def _opener(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Callable[[], BinaryIO]:
        try:
            if not entry.isreg():
                raise ClipRejected(NOT_A_FILE)
            self._meter.refuse_large(entry.size)
            content = _content(tar, entry)
            if entry.issparse():  # holes aren't in the stream, so they must be counted here
                content = self._meter.count(content)
            file = clip_file(entry.size, content)
            return lambda: file
        except ClipRejected as rejected:
            return partial(_reject, rejected)


def _reject(rejected: ClipRejected) -> BinaryIO:
    raise rejected


def _content(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    """Yield a regular member's content in blocks, including holes. tarfile raises if it is truncated."""
    file = tar.extractfile(entry)
    assert file is not None
    while block := file.read(BLOCK):
        yield block


def _entries(stream: _Stream) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield every entry, then read the rest of the stream, as a compressed one has its checksum at the end.

    Raises:
        Unreadable, or an error of tarfile or the decompressors: the tar is damaged or has no end mark.
    """
    with _opened(stream) as tar:
        while (entry := _next(tar)) is not None:
            if entry.size < 0:
                raise Unreadable(message("damaged header: {entry} has a negative size", entry=entry.name))
            yield tar, entry
        if not tar.getmembers():  # tarfile reads a file of zeros, as failed copies leave, as an empty tar
            raise Unreadable(message("it is empty"))
        assert tar.fileobj is not None
        while True:
            block = tar.fileobj.read(BLOCK)
            if block.strip(b"\0"):
                raise Unreadable(
                    message("more than zeros follow its end mark: it is damaged, or several tars in one file")
                )
            if len(block) < BLOCK:
                break


def _opened(stream: _Stream) -> tarfile.TarFile:
    with _damage_of_headers():
        return tarfile.open(
            fileobj=cast(BinaryIO, stream),
            mode="r|",
            bufsize=_BUFFER,
            tarinfo=_StrictTarInfo,
            encoding="utf-8",
            errors="surrogateescape",
        )


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    with _damage_of_headers():
        return tar.next()


@contextmanager
def _damage_of_headers() -> Iterator[None]:
    """Convert the various exceptions that tarfile raises for malformed headers."""
    try:
        yield
    except (ValueError, IndexError, OverflowError, RecursionError) as error:
        raise Unreadable(message("damaged header: {error}", error=error)) from error


class _StrictTarInfo(tarfile.TarInfo):
    """TarInfo that raises on any damaged or missing header. tarfile treats all but the first as the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < tarfile.BLOCKSIZE:
            raise Unreadable(message("it breaks off: there is no end mark"))
        try:
            entry = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise Unreadable(message("damaged header: {error}", error=error)) from error
            raise  # a block of zeros, the end mark
        if entry.type in _ABOUT_NEXT and not 0 <= entry.size <= _MAX_ABOUT_NEXT:  # read into memory at once
            raise Unreadable(message("damaged header: {size} bytes about the next one", size=entry.size))
        return entry


class _Stream:
    """Counted stream of unpacked bytes. It raises on a second read at its end, which malformed headers cause."""

    def __init__(self, file: BinaryIO, meter: Meter) -> None:
        self._file = file
        self._meter = meter
        self._ended = False

    def read(self, size: int) -> bytes:
        if self._ended:
            raise EOFError("it breaks off within a member")
        data = self._file.read(size)
        self._meter.add(len(data))
        self._ended = not data
        return data


def _decompressed(file: BinaryIO, head: bytes) -> BinaryIO:
    """Return the decompressed file. tarfile's own decompression ignores truncation and reads only the first stream."""
    file.seek(0)
    for magic, open_stream in _DECOMPRESSORS.items():
        if head.startswith(magic):
            return cast(BinaryIO, open_stream(file))
    return file

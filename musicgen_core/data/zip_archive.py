"""Read members of a zip with random access, from many threads, with checksums verified."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import stat
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any, BinaryIO

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
    is_clip,
    is_damage,
    is_sidecar,
)
from musicgen_core.data.zip_directory import LOCAL_MAGIC, RandomReader, ZipEntry
from musicgen_core.errors import ClipRejected
from musicgen_core.language import message
from musicgen_core.texts import AUTO, decode_name, encoding_of, legible

_LOCAL = struct.Struct("<8xH16x2H")  # a member's own header: method, bytes of the name and of the extra fields
_ENCRYPTED, _LZMA_HAS_END, _PATCHED = 1 << 0, 1 << 1, 1 << 5
_STORED, _DEFLATED, _BZIP2, _LZMA = 0, 8, 12, 14
_UNSUPPORTED = {1: "shrink", 6: "implode", 9: "deflate64", 93: "zstd", 95: "xz", 97: "WavPack", 98: "PPMd"}


class ZipArchive(Archive):
    """An open zip.

    Args:
        reader: reader of the file.
        entries: entries of its directory.
        meter: counts the unpacked bytes.
        name_encoding: encoding of names that don't declare one.
    """

    def __init__(self, reader: RandomReader, entries: list[ZipEntry], meter: Meter, name_encoding: str) -> None:
        self._reader = reader
        self._meter = meter
        self._entries = list(zip(names_of(entries, name_encoding), entries, strict=True))
        self._clips = [(name, entry) for name, entry in self._entries if is_clip(name)]
        self._sidecars: Sidecars | None = None

    @property
    def clip_count(self) -> int:
        return len(self._clips)

    def digest(self, stored_checksum: Callable[[], str | None]) -> str:
        """Return a hash of the directory, which holds the size and CRC-32 of every member; see `Archive`."""
        digest = hashlib.sha256()
        for _, entry in self._entries:
            reading = f"{entry.name}\0{entry.flags}\0{entry.method}\0{entry.file_type}"  # may lead to a rejection
            digest.update(b"%b\0%d\0%d\0%b\n" % (entry.raw_name, entry.size, entry.crc, reading.encode()))
        return f"sha256:{digest.hexdigest()}"

    def clips(self) -> Iterator[Member]:
        for name, entry in self._clips:
            yield Member(name, entry.size, partial(self._open, entry))

    def clip_names(self) -> Iterator[str]:
        return (name for name, _ in self._clips)

    def sidecars(self) -> Sidecars:
        if self._sidecars is None:
            sidecars: Sidecars = {}
            for name, entry in self._entries:
                if is_sidecar(name):
                    add_sidecar(sidecars, name, entry.size, self._meter.count(unpacked(entry, self._reader)))
            self._sidecars = sidecars
        return self._sidecars

    def read_sidecars(self) -> Sidecars:
        return self.sidecars()

    def count_damaged(self, names: Collection[str]) -> int:
        return sum(not _is_readable(entry, self._reader) for name, entry in self._entries if name in names)

    def _open(self, entry: ZipEntry) -> BinaryIO:
        self._meter.refuse_large(entry.size)
        return clip_file(entry.size, self._meter.count(unpacked(entry, self._reader)))


def names_of(entries: list[ZipEntry], name_encoding: str) -> list[str]:
    """Return decoded names; the encoding is guessed from all names that don't declare one."""
    if name_encoding == AUTO:
        name_encoding = encoding_of(entry.raw_name for entry in entries if entry.name is None)
    return [
        decode_name(entry.raw_name, name_encoding) if entry.name is None else legible(entry.name) for entry in entries
    ]


def _is_readable(entry: ZipEntry, reader: RandomReader) -> bool:
    try:
        for _ in unpacked(entry, reader):
            pass
    except ClipRejected:
        return False
    return True


def unpacked(entry: ZipEntry, reader: RandomReader) -> Iterator[bytes]:
    """Yield a member's content in blocks. It is verified only after the last block.

    Raises:
        ClipRejected: the member isn't a file, can't be unpacked, or is damaged.
        OSError: the file can't be read.
    """
    _refuse_unsupported(entry)
    size = crc = 0
    try:
        for block in _decompressed(entry, _packed(entry, reader)):
            size += len(block)
            if size > entry.size:
                raise Unreadable(message("it unpacks to more than the {size} bytes of the directory", size=entry.size))
            crc = zlib.crc32(block, crc)
            yield block
        if size < entry.size:
            raise Unreadable(message("it unpacks to {size} of {whole} bytes", size=size, whole=entry.size))
        if crc != entry.crc:
            raise Unreadable(message("its CRC-32 is not the one of the directory"))
    except Exception as error:  # sorted by is_damage
        if not is_damage(error):
            raise
        raise ClipRejected(message("damaged in the archive ({reason})", reason=error)) from error


def _refuse_unsupported(entry: ZipEntry) -> None:
    if entry.file_type not in (0, stat.S_IFREG):
        raise ClipRejected(NOT_A_FILE)
    if entry.flags & _ENCRYPTED:
        raise ClipRejected(message("encrypted in the archive, and passwords are not supported"))
    if entry.flags & _PATCHED or entry.method not in (_STORED, _DEFLATED, _BZIP2, _LZMA):
        method = "patched" if entry.flags & _PATCHED else _UNSUPPORTED.get(entry.method, f"of kind {entry.method}")
        raise ClipRejected(message("compressed in a way that is not supported ({method})", method=method))


def _packed(entry: ZipEntry, reader: RandomReader) -> Iterator[bytes]:
    """Yield the compressed bytes of a member in blocks."""
    header = reader.read(entry.offset, _LOCAL.size + len(entry.raw_name))
    if len(header) < _LOCAL.size or not header.startswith(LOCAL_MAGIC):
        raise Unreadable(message("it isn't where the directory says"))
    method, name_size, extra_size = _LOCAL.unpack_from(header)
    if (method, name_size, header[_LOCAL.size :]) != (entry.method, len(entry.raw_name), entry.raw_name):
        raise Unreadable(message("its own header and the directory disagree"))
    start = entry.offset + _LOCAL.size + name_size + extra_size
    end = start + entry.packed
    if end > reader.size:
        raise Unreadable(message("it extends beyond the end of the archive"))
    for place in range(start, end, BLOCK):
        yield reader.read(place, min(BLOCK, end - place))


def _decompressed(entry: ZipEntry, packed: Iterator[bytes]) -> Iterator[bytes]:
    """Yield decompressed blocks of at most 1 MiB, whatever the compression ratio."""
    if entry.method == _STORED:
        yield from packed
        return
    decompressor, data = _decompressor(entry, packed)
    while not decompressor.eof:
        block = decompressor.decompress(data, BLOCK)
        data = getattr(decompressor, "unconsumed_tail", b"")  # of zlib; bz2 and lzma keep it internally
        if block:
            yield block
        elif not (data := next(packed, b"")):
            return


def _decompressor(entry: ZipEntry, packed: Iterator[bytes]) -> tuple[Any, bytes]:
    """Return the decompressor and its first input."""
    if entry.method == _DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS), b""
    if entry.method == _BZIP2:
        return bz2.BZ2Decompressor(), b""
    # Two bytes of version, two of the size of the properties, then five of properties (APPNOTE 5.8). With the size of
    # the content after the properties it is a .lzma file. A dictionary larger than the content is useless.
    head = next(packed, b"")
    if head[2:4] != b"\5\0" or len(head) < 9:
        raise Unreadable(message("its LZMA header is not valid"))
    dictionary = min(int.from_bytes(head[5:9], "little"), max(entry.size, 4096))
    size = 2**64 - 1 if entry.flags & _LZMA_HAS_END else entry.size
    properties = head[4:5] + dictionary.to_bytes(4, "little") + size.to_bytes(8, "little")
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE), properties + head[9:]

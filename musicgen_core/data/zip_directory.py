"""Read the directory at the end of a zip, in two or three reads.

zipfile isn't used: it reports I/O errors as "not a zip", decodes names before an encoding can be chosen, and rejects
the whole archive for one bad name. Source of the layouts: PKWARE's APPNOTE.TXT 6.3.10, sections 4.3.6 to 4.6.9.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from musicgen_core.data.members import Unreadable
from musicgen_core.language import message

LOCAL_MAGIC = b"PK\3\4"

# Only the fields that are used; `x` skips a byte.
_END = struct.Struct("<4x2H2xH2LH")
_LOCATOR64_BYTES = 20
_END64 = struct.Struct("<16x2L8x3Q")
_ENTRY = struct.Struct("<8x2H4x3L3H4x2L")
_MAX_COMMENT = 0xFFFF
_UTF8_FLAG = 1 << 11


class RandomReader:
    """Reads a file at any offset: a local file from many threads, any other from one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        try:
            file.fileno()
        except OSError:  # io.UnsupportedOperation
            self._is_local = False
        else:
            self._is_local = True

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, or fewer at the end of the file."""
        size = max(0, min(size, self.size - offset))
        if not self._is_local:
            self._file.seek(min(offset, self.size))
            return self._file.read(size)
        data = b""
        while len(data) < size:
            more = os.pread(self._file.fileno(), size - len(data), offset + len(data))
            if not more:
                break
            data = data + more if data else more
        return data


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """Directory entry of a member.

    Attributes:
        raw_name: bytes of the name.
        name: decoded name if the archive declares its encoding, else None.
        flags: general purpose flags, APPNOTE 4.4.4.
        method: compression method, APPNOTE 4.4.5.
        crc: CRC-32 of the content.
        packed: compressed size in bytes.
        size: uncompressed size in bytes.
        offset: offset of the local header from the beginning of the file.
        file_type: stat's S_IFMT bits; 0 if it wasn't packed on Unix.
    """

    raw_name: bytes
    name: str | None
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    file_type: int


@dataclass(frozen=True)
class _End:
    """End record. The directory ends at `offset`, before the record."""

    offset: int
    entries: int
    directory_size: int
    directory_offset: int
    is_64: bool


def read_directory(reader: RandomReader) -> list[ZipEntry]:
    """Return the members in the directory's order.

    Raises:
        Unreadable: the directory is missing or damaged.
    """
    found = _find_end(reader)
    if found is None:
        begins_like_one = reader.read(0, 2) == b"PK"
        raise Unreadable(
            message("it breaks off: there is no zip directory at its end")
            if begins_like_one
            else message("it doesn't begin like one: there is no zip directory at its end")
        )
    end = _parse_end(reader, *found)
    start = end.offset - end.directory_size
    shift = start - end.directory_offset  # bytes prepended to the archive, such as a self-extractor
    if shift < 0:
        raise Unreadable(message("its directory isn't where its end record says"))
    entries = list(_parse_entries(reader.read(start, end.directory_size)))
    if (len(entries) - end.entries) % (2**64 if end.is_64 else 2**16):  # the plain record's count may overflow
        raise Unreadable(
            message(
                "its directory lists {found} members, and its end record {declared}",
                found=len(entries),
                declared=end.entries,
            )
        )
    if shift and reader.read(0, 4) == LOCAL_MAGIC:
        if shift % 2**32:
            raise Unreadable(message("it holds another zip before its own members, or breaks off within"))
        return _unwrapped(entries)
    return [replace(entry, offset=entry.offset + shift) for entry in entries] if shift else entries


def _find_end(reader: RandomReader) -> tuple[int, bytes] | None:
    """Return offset and content of the last end record, which may be followed by its comment and trailing garbage."""
    start = max(0, reader.size - _END.size - _MAX_COMMENT)
    tail = reader.read(start, reader.size - start)
    place = len(tail)
    while (place := tail.rfind(b"PK\5\6", 0, place)) >= 0:
        record = tail[place : place + _END.size]
        if len(record) == _END.size and place + _END.size + _END.unpack(record)[-1] <= len(tail):
            return start + place, record
    return None


def _parse_end(reader: RandomReader, offset: int, record: bytes) -> _End:
    disk, first_disk, entries, size, directory_offset, _ = _END.unpack(record)
    locator = reader.read(offset - _LOCATOR64_BYTES, _LOCATOR64_BYTES) if offset >= _LOCATOR64_BYTES else b""
    is_64 = locator.startswith(b"PK\6\7")
    if is_64:
        offset -= _LOCATOR64_BYTES + _END64.size
        record = reader.read(max(0, offset), _END64.size)
        if offset < 0 or not record.startswith(b"PK\6\6"):
            raise Unreadable(message("its zip64 end record is damaged"))
        disk, first_disk, entries, size, directory_offset = _END64.unpack(record)
    if disk or first_disk:
        raise Unreadable(message("it is one part of an archive split over several files"))
    return _End(offset=offset, entries=entries, directory_size=size, directory_offset=directory_offset, is_64=is_64)


def _parse_entries(directory: bytes) -> Iterator[ZipEntry]:
    place = 0
    while place < len(directory):
        if not directory.startswith(b"PK\1\2", place) or place + _ENTRY.size > len(directory):
            raise Unreadable(message("its directory is damaged"))
        fields = _ENTRY.unpack_from(directory, place)
        flags, method, crc, packed, size, name_size, extra_size, comment_size, attributes, offset = fields
        name_end = place + _ENTRY.size + name_size
        raw_name = directory[place + _ENTRY.size : name_end]
        extra = dict(_extra_fields(directory[name_end : name_end + extra_size]))
        size, packed, offset = _sizes_64(extra.get(0x0001, b""), size, packed, offset)
        yield ZipEntry(
            raw_name=raw_name,
            name=_unicode_name(raw_name, flags, extra.get(0x7075, b"")),
            flags=flags,
            method=method,
            crc=crc,
            packed=packed,
            size=size,
            offset=offset,
            file_type=stat.S_IFMT(attributes >> 16),
        )
        place = name_end + extra_size + comment_size
    if place > len(directory):
        raise Unreadable(message("its directory breaks off"))


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, place)
        yield kind, extra[place + 4 : place + 4 + size]
        place += 4 + size


def _sizes_64(field: bytes, *values: int) -> Iterator[int]:
    """Yield the values, replaced by zip64's, which has, in this order, only those that don't fit into 32 bits."""
    place = 0
    for value in values:
        if value == 0xFFFFFFFF and place + 8 <= len(field):
            (value,) = struct.unpack_from("<Q", field, place)
            place += 8
        yield value


def _unicode_name(raw_name: bytes, flags: int, field: bytes) -> str | None:
    """Return the name by the UTF-8 flag or Info-ZIP's field 0x7075, valid only if its CRC is that of the plain name."""
    utf8 = raw_name if flags & _UTF8_FLAG else None
    if field[:1] == b"\1" and field[1:5] == zlib.crc32(raw_name).to_bytes(4, "little"):
        utf8 = field[5:]
    try:
        return utf8.decode("utf-8") if utf8 is not None else None
    except UnicodeDecodeError:
        return None


def _unwrapped(entries: list[ZipEntry]) -> list[ZipEntry]:
    """Undo the 32-bit overflow of offsets: macOS's Finder packs more than 4 GiB without zip64."""
    unwrapped, base, before = [], 0, 0
    for entry in entries:
        base += 2**32 if entry.offset < before else 0
        before = entry.offset
        unwrapped.append(replace(entry, offset=entry.offset + base))
    return unwrapped

"""Read TensorFlow V2 checkpoints without TensorFlow.

`PREFIX.index` is an SSTable in LevelDB's format: sorted keys, the names of tensors, whose values are protocol buffers
(BundleEntryProto) with the type, shape, offset and checksum of a tensor. `PREFIX.data-00000-of-00001` has the tensors'
bytes. Sources: https://github.com/google/leveldb/blob/main/doc/table_format.md and TensorFlow's
`core/protobuf/tensor_bundle.proto`.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from musicgen_core.errors import ModelError
from musicgen_core.language import Message, message

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # of a block: compression type, CRC
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8"}  # of tensorflow.DataType
_Fields = dict[int, list[int | bytes]]


class _Damaged(ValueError):
    """The files aren't a checkpoint, or they are damaged."""

    def __init__(self, reason: Message) -> None:
        super().__init__(reason)
        self.reason = reason


def read_checkpoint(prefix: str | Path) -> dict[str, NDArray[np.generic]]:
    """Return the tensors of a checkpoint by name.

    Args:
        prefix: the path of its files without `.index` and `.data-00000-of-00001`. A prefix that ends in `/` stands for
            files of exactly these names in a directory.

    Raises:
        ModelError: a file is missing, damaged or something else, or the checkpoint has types, several data files or
            partitioned tensors that aren't supported.
    """
    prefix = os.fspath(prefix)
    try:
        index, data = (Path(prefix + suffix).read_bytes() for suffix in (".index", ".data-00000-of-00001"))
        entries = dict(_table(index))
        header = _fields(entries.pop(b"", b""))
        if header.get(1) != [1] or header.get(2, [0]) != [0]:
            raise _Damaged(message("it has not exactly one data file in little-endian order"))
        return {name.decode(): _tensor(_fields(entry), data) for name, entry in entries.items()}
    except OSError as error:
        reason: object = error.strerror or error
    except _Damaged as error:
        reason = error.reason
    except (ValueError, IndexError, struct.error, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ModelError(
        message("{path} is not a usable TensorFlow checkpoint ({reason})", path=prefix, reason=reason),
        message("Install its package again: uv sync --reinstall-package musicnn"),
    )


def _tensor(entry: _Fields, data: bytes) -> NDArray[np.generic]:
    """Return the tensor of a BundleEntryProto."""
    dtype = _DTYPES.get(_integer(entry, 1))
    if dtype is None or _integer(entry, 3) != 0 or 7 in entry:
        raise _Damaged(message("it has tensors of unsupported types or in parts"))
    shape = [_integer(_fields(axis), 1) for axis in _fields(_bytes(entry, 2)).get(2, []) if isinstance(axis, bytes)]
    offset = _integer(entry, 4)
    content = data[offset : offset + _integer(entry, 5)]
    _check_crc(content, _integer(entry, 6))
    return np.frombuffer(content, dtype).reshape(shape)


def _table(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of an SSTable."""
    footer = file[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or struct.unpack_from("<Q", footer, _FOOTER_BYTES - 8) != (_MAGIC,):
        raise _Damaged(message("its index has no magic number"))
    _, _, at = _handle(footer, 0)  # of the metaindex block, which is empty
    start, size, _ = _handle(footer, at)
    for _, block in _entries(_block(file, start, size)):
        start, size, _ = _handle(block, 0)
        yield from _entries(_block(file, start, size))


def _handle(buffer: bytes, at: int) -> tuple[int, int, int]:
    """Return the offset and size of a block, and the position after the two."""
    start, at = _varint(buffer, at)
    size, at = _varint(buffer, at)
    return start, size, at


def _block(file: bytes, start: int, size: int) -> bytes:
    content, trailer = file[start : start + size], file[start + size : start + size + _TRAILER_BYTES]
    compression, crc = struct.unpack("<BI", trailer)
    if compression:
        raise _Damaged(message("its index is compressed"))
    _check_crc(content + trailer[:1], crc)
    return content


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a block. A key omits the prefix that it shares with the one before it."""
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 * (restarts + 1)
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        size, at = _varint(block, at)
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + size]
        at += own + size


def _check_crc(content: bytes, masked: int) -> None:
    """Compare bytes with their CRC-32C, which is stored rotated by 15 bits plus a constant."""
    crc = google_crc32c.value(content)
    if ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF != masked:
        raise _Damaged(message("a checksum doesn't match"))


def _fields(buffer: bytes) -> _Fields:
    """Return the values of a protocol buffer by field number: integers, or bytes of strings and messages."""
    found: _Fields = defaultdict(list)
    at = 0
    while at < len(buffer):
        tag, at = _varint(buffer, at)
        value: int | bytes
        match tag & 7:
            case 0:
                value, at = _varint(buffer, at)
            case 2:
                size, at = _varint(buffer, at)
                value, at = buffer[at : at + size], at + size
            case 5:
                (value,), at = struct.unpack_from("<I", buffer, at), at + 4
            case kind:
                raise ValueError(f"wire type {kind}")
        found[tag >> 3].append(value)
    return dict(found)


def _integer(fields: _Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    if not isinstance(value, int):
        raise TypeError(f"field {number} is not an integer")
    return value


def _bytes(fields: _Fields, number: int) -> bytes:
    value = fields.get(number, [b""])[-1]
    if not isinstance(value, bytes):
        raise TypeError(f"field {number} is not a message")
    return value


def _varint(buffer: bytes, at: int) -> tuple[int, int]:
    """Return an integer of seven bits a byte, the lowest first, and the position after it."""
    value = shift = 0
    while True:
        byte = buffer[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at

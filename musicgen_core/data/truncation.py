"""Recognise truncated AIFF and Ogg files, which libsndfile decodes as if they ended there.

AIFF: Apple, Audio Interchange File Format 1.3 (1989), and AIFF-C (1991). Ogg: RFC 3533.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib

from musicgen_core.data.wav import breaks_off, chunks, id3_bytes
from musicgen_core.errors import ClipRejected
from musicgen_core.language import message

_UNKNOWN = 0x7EFF_0000
"""Lower bound of the length that sox writes into a pipe: 0x7F000000, rounded down to whole samples"""
_SSND_HEADER = 8  # offset and block size

_PAGE = struct.Struct("<4sxBqIIIB")  # capture pattern, flags, position, stream, sequence number, CRC, segments
_CRC_OFFSET = 22
_BEGINS, _ENDS = 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def check_aiff(descriptor: int, decoded: int) -> None:
    """Check that an AIFF has the audio that its chunks declare. libsndfile clips them to the file, and ignores COMM.

    Args:
        descriptor: descriptor of the file.
        decoded: number of frames that were decoded.

    Raises:
        ClipRejected: the file is truncated.
    """
    size, begin = os.fstat(descriptor).st_size, id3_bytes(descriptor)
    declared = 0
    for name, start, length in chunks(descriptor, ">", begin + 12, size):
        if name == b"COMM":
            declared = int.from_bytes(os.pread(descriptor, 4, start + 2), "big")  # after the number of channels
        elif name == b"SSND":
            if length < _SSND_HEADER or length >= _UNKNOWN:  # written into a pipe
                return
            if start + length > size:
                raise breaks_off(length - _SSND_HEADER, max(0, size - start - _SSND_HEADER), in_frames=False)
    if declared > decoded:
        raise breaks_off(declared, decoded)


def check_ogg(descriptor: int) -> None:
    """Check that every stream of an Ogg file has its last page, and that all pages up to there are undamaged.

    libsndfile takes the last page that it finds for the end, and skips damaged pages.

    Raises:
        ClipRejected: the file is truncated or damaged.
    """
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
        position = id3_bytes(descriptor)
        unfinished: set[int] = set()
        while position + _PAGE.size <= len(data):
            pattern, flags, _, stream, _, crc, segments = _PAGE.unpack_from(data, position)
            lacing = data[position + _PAGE.size : position + _PAGE.size + segments]
            end = position + _PAGE.size + segments + sum(lacing)
            if pattern != b"OggS" or (end <= len(data) and _ogg_crc(data[position:end]) != crc):
                raise ClipRejected(message("damaged: the Ogg page at byte {byte:,} is not valid", byte=position))
            if end > len(data):
                break
            if flags & _BEGINS:
                unfinished.add(stream)
            if flags & _ENDS:
                unfinished.discard(stream)
                if not unfinished:  # tags may follow, or another file, which `check_single` finds
                    return
            position = end
    raise ClipRejected(message("it breaks off: there is no end mark"))


def _ogg_crc(page: bytes) -> int:
    """Return the checksum of a page: CRC-32 without zlib's reflection of bits and its inversions."""
    blank = page[:_CRC_OFFSET] + bytes(4) + page[_CRC_OFFSET + 4 :]
    reflected = zlib.crc32(blank.translate(_REVERSED), 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return int(f"{reflected:032b}"[::-1], 2)

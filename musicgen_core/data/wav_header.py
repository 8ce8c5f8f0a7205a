"""Parse wav headers and compare declared with present audio.

libsndfile silently truncates a data chunk that is longer than its file, so the chunks are parsed here, too.

RIFF and RIFX: IBM and Microsoft, Multimedia Programming Interface and Data Specifications 1.0 (1991), chapter 3;
RF64: EBU Tech 3306; BW64: ITU-R BS.2088.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from musicgen_core.errors import ClipRejected
from musicgen_core.language import message

_BYTE_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"BW64": "<"}  # as `struct` has them
# Placeholders of writers that can't seek back to fill in the length, as into a pipe: ffmpeg 0xFFFFFFFF, sox
# 0x7FFFF000, arecord 0x7FFFFF00 or 0x80000000; in a ds64 chunk, -1 or the largest signed number.
_UNKNOWN = 0x7FFF_0000
_UNKNOWN_64 = 1 << 62
_MINUS_ONE = 0xFFFF_FFFF
_MAX_CHUNKS = 1000  # real files have a few; crafted ones must not keep a thread busy
_MIN_FMT_BYTES, _MAX_FMT_BYTES = 16, 1 << 16
PCM, FLOAT, ALAW, MULAW = 1, 3, 6, 7
"""Format tags."""
_EXTENSIBLE = 0xFFFE


class WavFormat(NamedTuple):
    """Fields of a fmt chunk. `tag` is that of the sub-format if the chunk's is "extensible"."""

    tag: int
    channels: int
    rate: int
    byte_rate: int
    block_align: int
    bits: int


@dataclass(frozen=True)
class WavHeader:
    """Position and declared size of a wav's audio.

    Attributes:
        byte_order: `<`, or `>` for RIFX, as in `struct`.
        fmt: content of the fmt chunk.
        start: offset of the audio in bytes.
        declared: bytes of audio declared by the header; None if its writer couldn't know.
        present: bytes from `start` to the end of the file.
        next_wav: offset of another wav after the audio, if any.
    """

    byte_order: str
    fmt: bytes
    start: int
    declared: int | None
    present: int
    next_wav: int | None = None

    @property
    def audio_bytes(self) -> int:
        """Return the bytes of audio: as declared, or up to the end of the file if unknown."""
        return self.present if self.declared is None else min(self.declared, self.present)

    @property
    def frame_bytes(self) -> int | None:
        """Return the bytes of one sample of all channels; None for codecs such as ADPCM."""
        form = self.format
        if form.tag in (ALAW, MULAW):
            return form.channels or None
        return form.channels * -(-form.bits // 8) or None if form.tag in (PCM, FLOAT) else None

    @property
    def frames(self) -> int | None:
        """Return the samples per channel, without an incomplete last one; None if `frame_bytes` is None."""
        return self.audio_bytes // self.frame_bytes if self.frame_bytes else None

    def check(self) -> None:
        """Check the header against the file.

        Raises:
            ClipRejected: there is less audio than it declares, another wav behind it, or its fields contradict each
                other.
        """
        if self.next_wav is not None:
            raise joined_files(self.next_wav)
        unit = self.frame_bytes or 1
        if self.declared is not None and self.declared // unit > self.present // unit:
            raise breaks_off(self.declared // unit, self.present // unit, in_frames=bool(self.frame_bytes))
        _, channels, _, _, block_align, bits = self.format
        # Which of the bytes hold the sample differs between writers, and libsndfile guesses from the sound.
        if self.frame_bytes and block_align % channels == 0 and self.frame_bytes < block_align <= 8 * channels:
            raise ClipRejected(
                message(
                    "its header contradicts itself: samples of {bits} bits in {size} bytes each",
                    bits=bits,
                    size=block_align // channels,
                )
            )

    def plain(self) -> bytes:
        """Return a minimal header, to be followed by `audio_bytes` of the file."""
        number = struct.Struct(f"{self.byte_order}I")
        chunks = b"WAVEfmt " + number.pack(len(self.fmt)) + self.fmt + bytes(len(self.fmt) % 2) + b"data"
        length = min(self.audio_bytes, _MINUS_ONE)  # libsndfile clips a length beyond the end of the file
        magic = b"RIFF" if self.byte_order == "<" else b"RIFX"
        return magic + number.pack(min(len(chunks) + 4 + length, _MINUS_ONE)) + chunks + number.pack(length)

    @property
    def format(self) -> WavFormat:
        tag, *rest = struct.unpack_from(f"{self.byte_order}HHIIHH", self.fmt)
        if tag == _EXTENSIBLE and len(self.fmt) >= 28:
            (tag,) = struct.unpack_from(f"{self.byte_order}I", self.fmt, 24)  # the GUID begins with the tag
        return WavFormat(tag, *rest)


def read_wav_header(descriptor: int) -> WavHeader | None:
    """Return the header of an open file, at any position; None if it isn't a wav, or lacks fmt or data."""
    size = os.fstat(descriptor).st_size
    begin = id3_bytes(descriptor)
    head = os.pread(descriptor, 12, begin)
    byte_order = _BYTE_ORDERS.get(head[:4])
    if byte_order is None or head[8:] != b"WAVE":
        return None
    fmt = data = next_wav = None
    for name, start, length in _chunks(descriptor, byte_order, begin + 12, size):
        if name == b"fmt " and fmt is None:
            fmt = os.pread(descriptor, min(length, _MAX_FMT_BYTES), start)
        elif name == b"data" and data is None:
            unknown = length > size - start and _is_sentinel(length, head)
            unknown |= length == 0 and not _are_chunks(descriptor, byte_order, start, size)
            data = start, None if unknown else length, size - start
        elif name in _BYTE_ORDERS and data is not None and os.pread(descriptor, 4, start) == b"WAVE":
            next_wav = start - 8
            break
        if fmt is not None and data is not None and data[1] is None:
            break
    if fmt is None or data is None or len(fmt) < _MIN_FMT_BYTES:
        return None
    return WavHeader(byte_order, fmt, *data, next_wav)


def breaks_off(declared: int, present: int, in_frames: bool = True) -> ClipRejected:
    """Return the error for a clip with less audio than its header declares, in frames or in bytes."""
    counts = {"declared": declared, "present": present}
    if in_frames:
        found = message("it breaks off: its header declares {declared:,} frames, {present:,} are there", **counts)
    else:
        found = message(
            "it breaks off: its header declares {declared:,} bytes of audio, {present:,} are there", **counts
        )
    return ClipRejected(found)


def joined_files(byte: int) -> ClipRejected:
    """Return the error for a clip that is followed by another one at this byte."""
    return ClipRejected(
        message("it is several sound files joined into one: another begins at byte {byte:,}", byte=byte),
        message("Split it, or encode it as one file"),
    )


def id3_bytes(descriptor: int) -> int:
    """Return the length of a leading ID3v2 tag. Some taggers prepend one to RIFF, too; libsndfile skips it."""
    head = os.pread(descriptor, 10, 0)
    if len(head) < 10 or not head.startswith(b"ID3"):
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _chunks(descriptor: int, byte_order: str, position: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of each chunk, with lengths from a ds64 chunk where given."""
    long_length: int | None = None
    for _ in range(_MAX_CHUNKS):
        if position + 8 > size:
            return
        name, length = struct.unpack(f"{byte_order}4sI", os.pread(descriptor, 8, position))
        position += 8
        if name == b"ds64":
            long_length = int.from_bytes(os.pread(descriptor, 16, position)[8:], "little")
        elif name == b"data" and long_length is not None and length in (0, _MINUS_ONE):
            length = long_length
        yield name, position, length
        position += length
        # A zero byte pads odd chunks, but some writers omit it. No chunk name begins with a zero.
        if length % 2 and position < size and os.pread(descriptor, 1, position) == b"\0":
            position += 1


def _is_sentinel(length: int, head: bytes) -> bool:
    if head[:4] in (b"RF64", b"BW64"):
        return length == _MINUS_ONE or length >= _UNKNOWN_64
    riff_length: int = struct.unpack(f"{_BYTE_ORDERS[head[:4]]}I", head[4:8])[0]
    return max(length, riff_length) >= _UNKNOWN


def _are_chunks(descriptor: int, byte_order: str, position: int, size: int) -> bool:
    """Return whether the rest of a file is complete chunks or nothing, and not audio."""
    for name, start, length in _chunks(descriptor, byte_order, position, size):
        if not all(0x20 <= byte < 0x7F for byte in name):
            return False
        position = start + length
    return size - position in (0, 1)

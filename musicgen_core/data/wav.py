"""Parse wav headers, compare declared with present audio, and decode uncompressed wavs, the format of nearly all clips.

libsndfile silently truncates a data chunk that is longer than its file, and may loop on malformed files.

RIFF and RIFX: IBM and Microsoft, Multimedia Programming Interface and Data Specifications 1.0 (1991), chapter 3;
RF64: EBU Tech 3306; BW64: ITU-R BS.2088; A-law and µ-law: ITU-T G.711.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from musicgen_core.data.mix_down import AudioArray
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
_MAX_CHANNELS = 1024  # libsndfile's own bound
_MAX_RATE = 2**31 - 1
_Convert = Callable[[NDArray[np.uint8], AudioArray], object]


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
    for name, start, length in chunks(descriptor, byte_order, begin + 12, size):
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


def chunks(descriptor: int, byte_order: str, position: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and length of each chunk, with lengths from a ds64 chunk where given.

    Args:
        descriptor: descriptor of the file, which is read at absolute offsets.
        byte_order: `<` or `>`, as in `struct`.
        position: offset of the first chunk.
        size: size of the file.
    """
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
    for name, start, length in chunks(descriptor, byte_order, position, size):
        if not all(0x20 <= byte < 0x7F for byte in name):
            return False
        position = start + length
    return size - position in (0, 1)


class PcmSound:
    """The audio of an uncompressed wav, with libsndfile's values bit for bit: integers are scaled to [-1, 1).

    Args:
        descriptor: descriptor of the file, which is read at absolute offsets.
        header: header of the same file.
        convert: converts bytes of whole samples, [n] uint8, into an fp32 array, [n / width].
    """

    def __init__(self, descriptor: int, header: WavHeader, convert: _Convert) -> None:
        form = header.format
        self._descriptor = descriptor
        self._convert = convert
        self._width = form.bits // 8
        self._position = header.start
        self.channels, self.samplerate = form.channels, form.rate
        self.frames = header.audio_bytes // (self.channels * self._width)
        self._end = self._position + self.frames * self.channels * self._width
        self._bytes = np.empty(0, dtype=np.uint8)

    def read(self, *, out: AudioArray) -> AudioArray:
        frame_bytes = self.channels * self._width
        wanted = min(len(out) * frame_bytes, self._end - self._position)
        if len(self._bytes) < wanted:
            self._bytes = np.empty(max(wanted, frame_bytes), dtype=np.uint8)
        got = 0
        while got < wanted and (
            count := os.preadv(self._descriptor, [self._bytes[got:wanted].data], self._position + got)
        ):
            got += count
        frames = got // frame_bytes
        self._position += frames * frame_bytes
        filled = out[:frames]
        self._convert(self._bytes[: frames * frame_bytes], filled.reshape(-1))
        return filled


def open_pcm(descriptor: int, header: WavHeader) -> PcmSound | None:
    """Return the audio of a wav in a common uncompressed format; None for any other."""
    form = header.format
    convert = _converter(form.tag, form.bits, header.byte_order)
    if (
        convert is None
        or not 1 <= form.channels <= _MAX_CHANNELS
        or not 1 <= form.rate <= _MAX_RATE
        or form.block_align != form.channels * form.bits // 8
    ):
        return None
    return PcmSound(descriptor, header, convert)


def _converter(tag: int, bits: int, byte_order: str) -> _Convert | None:
    if (tag, bits) == (PCM, 24):
        return partial(_from_24_bits, byte_order=byte_order)
    if (tag, bits) == (PCM, 8):
        return _from_unsigned
    if tag in (ALAW, MULAW) and bits == 8:
        table = _ALAW_TABLE if tag == ALAW else _MULAW_TABLE
        return lambda data, out: np.take(table, data, out=out, mode="clip")
    kind = {(PCM, 16): "i2", (PCM, 32): "i4", (FLOAT, 32): "f4", (FLOAT, 64): "f8"}.get((tag, bits))
    if kind is None:
        return None
    scale = 2.0 ** (1 - bits) if tag == PCM else 1.0
    return lambda data, out: _from_numbers(data.view(f"{byte_order}{kind}"), out, scale)


def _from_numbers(values: NDArray[Any], out: AudioArray, scale: float) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # doubles beyond fp32; not finite ones are counted later
        np.copyto(out, values, casting="same_kind" if values.dtype.kind == "f" else "unsafe")
        if scale != 1:
            out *= np.float32(scale)


def _from_unsigned(data: NDArray[np.uint8], out: AudioArray) -> None:
    np.subtract(data, np.float32(128), out=out)
    out *= np.float32(1 / 128)


def _from_24_bits(data: NDArray[np.uint8], out: AudioArray, byte_order: str) -> None:
    step = 1 << 14  # the widened block fits the CPU cache
    wide = np.zeros((step, 4), dtype=np.uint8)
    upper = slice(1, 4) if byte_order == "<" else slice(0, 3)  # upper three bytes of 32 bits
    samples = data.reshape(-1, 3)
    for start in range(0, len(samples), step):
        part = samples[start : start + step]
        wide[: len(part), upper] = part
        _from_numbers(wide[: len(part)].view(f"{byte_order}i4")[:, 0], out[start : start + len(part)], 2.0**-31)


def _alaw_table() -> AudioArray:
    code = np.arange(256) ^ 0x55
    exponent, mantissa = code >> 4 & 7, code & 15
    magnitude = np.where(exponent == 0, (mantissa << 4) + 8, (mantissa + 16.5) * 2.0 ** (exponent + 3))
    return (np.where(code & 0x80, magnitude, -magnitude) / 2**15).astype(np.float32)


def _mulaw_table() -> AudioArray:
    code = ~np.arange(256) & 0xFF
    magnitude = ((code & 15) * 8 + 132 << (code >> 4 & 7)) - 132
    return (np.where(code & 0x80, -magnitude, magnitude) / 2**15).astype(np.float32)


_ALAW_TABLE, _MULAW_TABLE = _alaw_table(), _mulaw_table()

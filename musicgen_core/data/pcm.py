"""Decode uncompressed wavs, the format of nearly all clips, without libsndfile, which may loop on malformed files.

Values equal libsndfile's bit for bit: integers are scaled to [-1, 1), A-law and µ-law are expanded to 16 bits
(ITU-T G.711).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_core.data.mix_down import AudioArray
from musicgen_core.data.wav_header import ALAW, FLOAT, MULAW, PCM, WavHeader

_MAX_CHANNELS = 1024  # libsndfile's own bound
_MAX_RATE = 2**31 - 1


class PcmSound:
    """The audio of an uncompressed wav.

    Args:
        descriptor: descriptor of the file, which is read at absolute offsets.
        header: header of the same file.
        convert: converts bytes of whole samples, [n] uint8, into an fp32 array, [n / width].
    """

    def __init__(
        self, descriptor: int, header: WavHeader, convert: Callable[[NDArray[np.uint8], AudioArray], None]
    ) -> None:
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


def _converter(tag: int, bits: int, byte_order: str) -> Callable[[NDArray[np.uint8], AudioArray], None] | None:
    if tag == PCM and bits == 24:
        return lambda data, out: _from_24_bits(data, out, byte_order)
    if tag in (ALAW, MULAW) and bits == 8:
        table = _ALAW_TABLE if tag == ALAW else _MULAW_TABLE
        return lambda data, out: _look_up(table, data, out)
    if (tag, bits) == (PCM, 8):
        return _from_unsigned
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


def _look_up(table: AudioArray, data: NDArray[np.uint8], out: AudioArray) -> None:
    np.take(table, data, out=out, mode="clip")


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

"""Wavs built chunk by chunk."""

from __future__ import annotations

import struct
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musicgen_core.data.wav import WavHeader, read_wav_header
from tests.musicgen_core.data.audio_files import decoded

RATE = 5000  # so that 1024 samples of 8 channels are long enough
FRAMES = 2000
AUDIO = np.random.default_rng(0).integers(-(2**15), 2**15, FRAMES).astype("<i2")
BYTES = AUDIO.tobytes()
SAMPLES = AUDIO / np.float32(2**15)


def fmt(tag: int = 1, bits: int = 16, block_align: int | None = None, channels: int = 1, order: str = "<") -> bytes:
    align = channels * bits // 8 if block_align is None else block_align
    return struct.pack(f"{order}HHIIHH", tag, channels, RATE, RATE * align, align, bits)


def chunk(name: bytes, content: bytes, length: int | None = None, order: str = "<", pad: bytes = b"\0") -> bytes:
    length = len(content) if length is None else length
    return name + struct.pack(f"{order}I", length) + content + pad * (len(content) % 2)


def riff(*chunks: bytes, magic: bytes = b"RIFF", length: int | None = None, order: str = "<") -> bytes:
    content = b"WAVE" + b"".join(chunks)
    return magic + struct.pack(f"{order}I", len(content) if length is None else length) + content


def ds64(audio_bytes: int, riff_bytes: int = 0) -> bytes:
    return chunk(b"ds64", struct.pack("<QQQI", riff_bytes, audio_bytes, 0, 0))


def rf64(
    audio_bytes: int, *before: bytes, audio: bytes = BYTES, length: int = 2**32 - 1, magic: bytes = b"RF64"
) -> bytes:
    return riff(
        ds64(audio_bytes), chunk(b"fmt ", fmt()), *before, chunk(b"data", audio, length), magic=magic, length=2**32 - 1
    )


FMT = chunk(b"fmt ", fmt())
DATA = chunk(b"data", BYTES)
LIST = chunk(b"LIST", b"INFOISFT\x04\0\0\0abcd")
ID3 = b"ID3\x04\0\0\0\0\x01\x02" + bytes(130)  # sizes of ID3 have 7 bits a byte


def header_of(data: bytes) -> WavHeader | None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_wav_header(file.fileno())


def assert_decodes_to(data: bytes, samples: NDArray[Any]) -> None:
    clip = decoded(data)
    np.testing.assert_array_equal(clip.samples, samples)
    assert clip.rate == RATE

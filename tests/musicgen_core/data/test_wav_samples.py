"""Samples of every encoding, width and byte order decode as specified."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.musicgen_core.data.audio_files import decoded, rejection
from tests.musicgen_core.data.wav_bytes import DATA, assert_decodes_to, chunk, ds64, fmt, riff

KINDS = {"8-bit": (1, 8), "16-bit": (1, 16), "24-bit": (1, 24), "32-bit": (1, 32), "float 32": (3, 32),
         "float 64": (3, 64), "A-law": (6, 8), "µ-law": (7, 8)}  # fmt: skip
MAGICS = [b"RIFF", b"RIFX", b"RF64", b"BW64"]


def law(codes: NDArray[np.uint8], tag: int) -> NDArray[np.float64]:
    """ITU-T G.711, tables 1 and 2."""
    flipped = (codes ^ (0x55 if tag == 6 else 0xFF)).astype(int)
    exponent, mantissa, positive = (flipped >> 4) & 7, flipped & 15, flipped & 0x80
    if tag == 6:
        size = np.where(exponent == 0, 16 * mantissa + 8, (16 * mantissa + 264) << np.maximum(exponent - 1, 0))
        return np.where(positive, size, -size) / 2**15
    size = ((8 * mantissa + 132) << exponent) - 132
    return np.where(positive, -size, size) / 2**15


def encoded(tag: int, bits: int, order: str) -> tuple[bytes, NDArray[Any]]:
    """Return 1024 encoded samples, and their values."""
    rng = np.random.default_rng(bits)
    codes = np.arange(1024, dtype=np.uint8)
    if tag in (6, 7):
        return codes.tobytes(), law(codes, tag)
    if tag == 3:
        samples = rng.uniform(-1, 1, 1024)
        return samples.astype(f"{order}f{bits // 8}").tobytes(), samples
    if bits == 8:
        return codes.tobytes(), (codes.astype(float) - 128) / 128
    values = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), 1024)
    octets = values.astype(f"{order}i8").view(np.uint8).reshape(-1, 8)
    octets = octets[:, : bits // 8] if order == "<" else octets[:, -bits // 8 :]
    return octets.tobytes(), values / 2 ** (bits - 1)


def wav(magic: bytes, extensible: bool, tag: int, bits: int, channels: int) -> tuple[bytes, NDArray[Any]]:
    """Return a file built by the specifications, and its samples, [frames, channels]."""
    order = ">" if magic == b"RIFX" else "<"
    content, samples = encoded(tag, bits, order)
    frames = len(samples) // channels
    content = content[: frames * channels * bits // 8]
    description = fmt(0xFFFE if extensible else tag, bits, channels=channels, order=order)
    if extensible:
        description += struct.pack(f"{order}HHIIHH", 22, bits, 0, tag, 0, 16) + bytes.fromhex("800000aa00389b71")
    long = magic in (b"RF64", b"BW64")
    chunks = [ds64(len(content))] if long else []
    chunks += [chunk(b"fmt ", description, order=order), chunk(b"data", content, 2**32 - 1 if long else None, order)]
    data = riff(*chunks, magic=magic, length=2**32 - 1 if long else None, order=order)
    return data, samples[: frames * channels].reshape(frames, channels)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("extensible", [False, True], ids=["", "extensible"])
@pytest.mark.parametrize("magic", MAGICS)
def test_all_samples_of_all_wav_formats_decode_as_specified(
    magic: bytes, extensible: bool, kind: tuple[int, int]
) -> None:
    data, samples = wav(magic, extensible, *kind, channels=1)
    assert_decodes_to(data, samples[:, 0].astype(np.float32))
    assert rejection(data[:-1]) == "it breaks off: its header declares 1,024 frames, 1,023 are there"


@pytest.mark.parametrize("bits", [12, 16, 20, 24])
def test_samples_of_a_few_bits_fill_whole_bytes_from_the_top(bits: int) -> None:
    content, samples = encoded(1, -(-bits // 8) * 8, "<")
    align = len(content) // 1024
    assert_decodes_to(riff(chunk(b"fmt ", fmt(bits=bits, block_align=align)), chunk(b"data", content)), samples)


@settings(max_examples=60, deadline=None)
@given(
    magic=st.sampled_from(MAGICS),
    extensible=st.booleans(),
    kind=st.sampled_from(list(KINDS.values())),
    channels=st.integers(1, 8),
)
def test_channels_are_mixed_by_their_mean(magic: bytes, extensible: bool, kind: tuple[int, int], channels: int) -> None:
    data, samples = wav(magic, extensible, *kind, channels)
    np.testing.assert_allclose(decoded(data).samples, samples.mean(axis=1), atol=2e-7)


@pytest.mark.parametrize(("bits", "tag"), [(24, 1), (16, 1), (24, 0xFFFE)])
def test_samples_in_wider_containers_than_declared_are_rejected(bits: int, tag: int) -> None:
    extension = struct.pack("<HHIHHI", 22, bits, 0, 1, 0, 0x100000) + bytes.fromhex("800000aa00389b71")
    content = fmt(tag, bits, block_align=4) + (extension if tag == 0xFFFE else b"")
    reason = rejection(riff(chunk(b"fmt ", content), DATA))
    assert reason == f"its header contradicts itself: samples of {bits} bits in 4 bytes each"

"""The declared length of a wav: exact, left open by a stream, in 64 bits, more than there is."""

from __future__ import annotations

import struct
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data.wav import read_wav_header
from tests.musicgen_core.data.audio_files import rejection
from tests.musicgen_core.data.wav_bytes import (
    BYTES,
    FMT,
    ID3,
    LIST,
    SAMPLES,
    assert_decodes_to,
    chunk,
    fmt,
    header_of,
    rf64,
    riff,
)

SENTINELS = [0xFFFF_FFFF, 0xFFFF_FFFE, 0x8000_0000, 0x7FFF_FFFF, 0x7FFF_FF00, 0x7FFF_F000]


@pytest.mark.parametrize("partial_frame", [b"", b"x"])
@pytest.mark.parametrize("riff_length", [0, 8, 0x7FFF_F024, 0xFFFF_FFFF])
@pytest.mark.parametrize("length", [0, *SENTINELS])
def test_a_length_that_a_stream_left_open_means_all_there_is(
    length: int, riff_length: int, partial_frame: bytes
) -> None:
    data = riff(FMT, chunk(b"data", BYTES + partial_frame, length, pad=b""), length=riff_length)
    assert_decodes_to(data, SAMPLES)
    header = header_of(data)
    assert header is not None and header.declared is None


def test_an_open_riff_length_opens_the_data_length_too() -> None:
    data = riff(FMT, chunk(b"data", BYTES, 10 * len(BYTES)), length=0xFFFF_FFFF)
    assert_decodes_to(data, SAMPLES)
    assert_decodes_to(data + LIST, np.concatenate([SAMPLES, np.frombuffer(LIST, "<i2") / np.float32(2**15)]))


def test_a_placeholder_length_counts_if_the_file_is_that_long() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(riff(FMT, chunk(b"data", b"", SENTINELS[-1])))
        file.truncate(44 + SENTINELS[-1] + 1000)  # sparse: takes no room
        header = read_wav_header(file.fileno())
    assert header is not None and header.declared == SENTINELS[-1]


@pytest.mark.parametrize("length", [0, 2**64 - 1, 2**63 - 1])
def test_an_open_rf64_length_means_the_rest_of_the_file(length: int) -> None:
    assert_decodes_to(rf64(length), SAMPLES)


def test_an_rf64_without_a_ds64_chunk_is_taken_to_its_end() -> None:
    data = riff(FMT, chunk(b"data", BYTES, 2**32 - 1), magic=b"RF64", length=2**32 - 1)
    assert_decodes_to(data, SAMPLES)


@pytest.mark.parametrize("before", [(), (LIST,), (chunk(b"junk", b"abc"),)], ids=["", "LIST", "odd junk"])
@pytest.mark.parametrize("length", [2**32 - 1, 0, len(BYTES)])
@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
def test_rf64_and_bw64_are_read_by_the_length_in_ds64(magic: bytes, length: int, before: tuple[bytes, ...]) -> None:
    assert_decodes_to(rf64(len(BYTES), *before, length=length, magic=magic), SAMPLES)
    assert_decodes_to(rf64(len(BYTES), *before, length=length, magic=magic) + LIST, SAMPLES)


def test_a_truncated_rf64_is_rejected() -> None:
    assert "declares 2,001 frames, 2,000 are there" in rejection(rf64(len(BYTES) + 2))
    assert "declares 1,500,000,000 frames, 2,000 are there" in rejection(rf64(3_000_000_000))


@settings(max_examples=60, deadline=None)
@given(missing=st.integers(1, len(BYTES)), order=st.sampled_from("<>"), tagged=st.booleans())
def test_every_wav_that_breaks_off_is_rejected_with_both_numbers(missing: int, order: str, tagged: bool) -> None:
    whole = riff(
        chunk(b"fmt ", fmt(order=order), order=order),
        chunk(b"data", BYTES, order=order),
        magic=b"RIFF" if order == "<" else b"RIFX",
        order=order,
    )
    there = (len(BYTES) - missing) // 2
    reason = rejection((ID3 if tagged else b"") + whole[:-missing])
    assert reason == f"it breaks off: its header declares 2,000 frames, {there:,} are there"


def test_codecs_without_fixed_frames_are_checked_by_bytes() -> None:
    ima = fmt(tag=0x11, bits=4, block_align=1024) + struct.pack("<HH", 2, 2041)
    data = riff(chunk(b"fmt ", ima), chunk(b"data", bytes(4096)))
    assert "declares 4,096 bytes of audio, 4,095 are there" in rejection(data[:-1])
    assert rejection(data) == "all its samples are zero"


@pytest.mark.parametrize("length", [2 * 1500, 2 * 1500 + 1])
@pytest.mark.parametrize("behind", [b"", LIST, LIST[:-3], b"TAG" + bytes(125)], ids=["", "LIST", "cut", "ID3v1"])
def test_of_more_than_is_declared_only_that_is_taken(length: int, behind: bytes) -> None:
    assert_decodes_to(riff(FMT, chunk(b"data", BYTES, length)) + behind, SAMPLES[:1500])

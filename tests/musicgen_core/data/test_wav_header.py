"""Chunks of a wav: their order, padding, absence and number."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data.wav import WavHeader
from tests.musicgen_core.data.audio_files import rejection
from tests.musicgen_core.data.wav_bytes import (
    BYTES,
    DATA,
    FMT,
    ID3,
    LIST,
    SAMPLES,
    assert_decodes_to,
    chunk,
    ds64,
    fmt,
    header_of,
    riff,
)


@settings(max_examples=40, deadline=None)
@given(behind=st.binary(max_size=300))
def test_whatever_follows_the_data_chunk_is_no_audio(behind: bytes) -> None:
    assert_decodes_to(riff(FMT, DATA) + behind, SAMPLES)


@pytest.mark.parametrize("behind", [b"", LIST, b"\0", b"\0" + LIST], ids=["", "LIST", "pad", "pad and LIST"])
def test_an_odd_data_chunk_may_lack_its_pad_byte(behind: bytes) -> None:
    audio = np.arange(1, 2000, dtype=np.uint8)
    data = riff(chunk(b"fmt ", fmt(bits=8)), chunk(b"data", audio.tobytes(), pad=b"")) + behind
    assert_decodes_to(data, (audio.astype(np.float32) - 128) / 128)


@pytest.mark.parametrize(
    "behind",
    [(), (LIST,), (chunk(b"id3 ", b"abc"), LIST), (LIST, chunk(b"id3 ", b"abc")), (chunk(b"id3 ", b"abc", pad=b""),)],
    ids=["", "LIST", "odd id3, LIST", "LIST, odd id3", "odd id3 without pad"],
)
def test_an_empty_data_chunk_is_empty_also_before_other_chunks(behind: tuple[bytes, ...]) -> None:
    assert rejection(riff(FMT, chunk(b"data", b""), *behind)) == "it holds no samples"


@pytest.mark.parametrize(
    "data",
    [
        riff(DATA, FMT),
        riff(LIST, DATA, LIST, FMT),
        riff(chunk(b"junk", b"abc"), FMT, DATA),
        riff(chunk(b"junk", b"abc", pad=b""), FMT, DATA),
        riff(FMT, chunk(b"LIST", b"INFOISFT\3\0\0\0abc", pad=b""), DATA),
        riff(FMT, DATA, chunk(b"data", BYTES[:100])),
        riff(FMT, chunk(b"fmt ", fmt(bits=8)), DATA),
        riff(chunk(b"fmt ", fmt(block_align=0)), DATA),
        riff(FMT, DATA, length=0),
        riff(FMT, DATA, LIST, length=0xFFFF_FFFF),
        riff(DATA, chunk(b"data", BYTES[:100]), FMT),
        riff(FMT, chunk(b"data", BYTES, len(BYTES) + 1)),
        riff(chunk(b"fmt ", fmt() + b"x"), chunk(b"data", BYTES, 0)),
        ID3 + riff(FMT, DATA, LIST),
        ID3 + riff(FMT, chunk(b"data", BYTES, 0)),
    ],
    ids=[
        "fmt last", "fmt last among others", "odd", "odd without pad", "odd LIST without pad", "two data", "two fmt",
        "no block align", "no RIFF length", "open RIFF length", "two data before fmt",
        "half a frame more declared", "odd fmt, no length", "ID3", "ID3 and no length",
    ],
)  # fmt: skip
def test_unusual_orders_of_chunks_are_read(data: bytes) -> None:
    assert_decodes_to(data, SAMPLES)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"RIFF",
        riff(),
        riff(FMT),
        riff(DATA),
        riff(chunk(b"fmt ", fmt()[:14]), DATA),
        riff(FMT, DATA).replace(b"WAVE", b"AVI "),
        riff(FMT, DATA).replace(b"RIFF", b"RIFZ"),
        riff(FMT, chunk(b"LIST", b"abcd", 2**32 - 1), DATA),
        riff(ds64(2**64 - 1), FMT[:8]),
        ID3[:9],
    ],
)
def test_files_without_fmt_and_data_chunk_have_no_header(data: bytes) -> None:
    assert header_of(data) is None
    assert rejection(data).startswith("not decodable as audio (")


def test_a_file_made_of_chunks_doesnt_keep_the_reader_busy() -> None:
    assert header_of(riff(*[chunk(b"junk", b"")] * 1001, FMT, DATA)) is None
    assert header_of(riff(*[chunk(b"junk", b"")] * 900, FMT, DATA)) is not None


def test_the_plain_header_describes_the_same_audio() -> None:
    for order, magic in (("<", b"RIFF"), (">", b"RIFX")):
        content = fmt(bits=24, channels=2, order=order)
        data = riff(chunk(b"fmt ", content, order=order), chunk(b"data", BYTES, 0, order), magic=magic, order=order)
        header = header_of(data)
        assert header is not None and header.frames == len(BYTES) // 6
        again = header_of(header.plain() + BYTES)
        assert again == WavHeader(order, content, 44, len(BYTES), len(BYTES))

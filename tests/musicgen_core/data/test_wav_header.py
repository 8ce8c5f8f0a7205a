from __future__ import annotations

import struct
import tempfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_core.data.audio import DecodedClip, decode
from musicgen_core.data.wav_header import WavHeader, read_wav_header
from musicgen_core.errors import ClipRejected

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
KINDS = {"8-bit": (1, 8), "16-bit": (1, 16), "24-bit": (1, 24), "32-bit": (1, 32), "float 32": (3, 32),
         "float 64": (3, 64), "A-law": (6, 8), "µ-law": (7, 8)}  # fmt: skip
MAGICS = [b"RIFF", b"RIFX", b"RF64", b"BW64"]
LIST = chunk(b"LIST", b"INFOISFT\x04\0\0\0abcd")
ID3 = b"ID3\x04\0\0\0\0\x01\x02" + bytes(130)  # sizes of ID3 have 7 bits a byte


def decoded(data: bytes) -> DecodedClip:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return decode(file)


def header_of(data: bytes) -> WavHeader | None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_wav_header(file.fileno())


def assert_decodes_to(data: bytes, samples: NDArray[Any]) -> None:
    clip = decoded(data)
    np.testing.assert_array_equal(clip.samples, samples)
    assert clip.rate == RATE


def rejection(data: bytes) -> str:
    with pytest.raises(ClipRejected) as rejected:
        decoded(data)
    assert "\n" not in str(rejected.value)
    return str(rejected.value)


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


@pytest.mark.parametrize(("bits", "tag"), [(24, 1), (16, 1), (24, 0xFFFE)])
def test_samples_in_wider_containers_than_declared_are_rejected(bits: int, tag: int) -> None:
    extension = struct.pack("<HHIHHI", 22, bits, 0, 1, 0, 0x100000) + bytes.fromhex("800000aa00389b71")
    content = fmt(tag, bits, block_align=4) + (extension if tag == 0xFFFE else b"")
    reason = rejection(riff(chunk(b"fmt ", content), DATA))
    assert reason == f"its header contradicts itself: samples of {bits} bits in 4 bytes each"


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

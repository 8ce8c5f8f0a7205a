"""Truncated files of every format are rejected wherever the format allows to recognise them."""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.musicgen_core.data.audio_files import decoded, rejection, written

KINDS = [
    ("FLAC", "PCM_16", 44_100),
    ("FLAC", "PCM_24", 44_100),
    ("MP3", "MPEG_LAYER_III", 44_100),
    ("OGG", "VORBIS", 44_100),
    ("OGG", "OPUS", 48_000),
    ("AIFF", "PCM_16", 44_100),
    ("AIFF", "PCM_24", 44_100),
    ("AIFF", "PCM_S8", 44_100),
    ("AIFF", "FLOAT", 44_100),
    ("AIFF", "ULAW", 44_100),
]
SECONDS = 2


@cache
def whole(container: str, subtype: str, rate: int, channels: int = 2) -> bytes:
    rng = np.random.default_rng(0)
    tone = 0.4 * np.sin(np.arange(SECONDS * rate) / 20) + 0.02 * rng.uniform(-1, 1, SECONDS * rate)
    return written(np.stack([tone] * channels, axis=1), rate, container, subtype)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_a_whole_file_has_its_length_and_a_truncated_one_is_rejected(kind: tuple[str, str, int]) -> None:
    data = whole(*kind)
    for tags in (b"", bytes(2000), b"TAG" + bytes(125), b"no chunk"):
        assert len(decoded(data + tags).samples) == SECONDS * kind[2]
    for kept in (len(data) - 1, *(int(len(data) * share) for share in (0.99, 0.75, 0.5, 0.25, 0.1, 0.01, 0.001))):
        rejection(data[:kept])


@settings(max_examples=100, deadline=None)
@given(kind=st.sampled_from(KINDS), share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_lacks_any_part_of_its_end_is_rejected(kind: tuple[str, str, int], share: float) -> None:
    data = whole(*kind)
    rejection(data[: int(len(data) * share)])


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS[:2] + KINDS[3:5]), share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_changed_bit_in_flac_or_ogg_gives_no_other_length(kind: tuple[str, str, int], share: float, bit: int) -> None:
    data = bytearray(whole(*kind))
    place = len(data) // 4 + int(share * (len(data) * 3 // 4))  # the audio: headers have a bit that matters to nothing
    data[place] ^= 1 << bit
    rejection(bytes(data))


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_the_end_of_an_ogg_is_found_behind_tags_and_in_mono(subtype: str) -> None:
    data = whole("OGG", subtype, 48_000, 1)
    assert len(decoded(data).samples) == SECONDS * 48_000
    last = data.rindex(b"OggS")
    assert "it breaks off: there is no end mark" in rejection(data[:last])
    assert "it breaks off: there is no end mark" in rejection(data[:-1])
    damaged = data[: last // 2] + bytes([data[last // 2] ^ 1]) + data[last // 2 + 1 :]
    assert "Ogg page" in rejection(damaged)


def aiff(frames: int, ssnd_size: int, *behind: tuple[bytes, bytes]) -> bytes:
    """Return a mono AIFF of 8,000 frames with any lengths in its COMM and SSND chunks."""
    audio = (8000 * np.sin(np.arange(8000) / 10)).astype(">i2").tobytes()
    comm = struct.pack(">HIH", 1, frames, 16) + bytes.fromhex("400bfa00000000000000")  # 8,000 Hz
    body = b"AIFFCOMM" + struct.pack(">I", len(comm)) + comm
    body += b"SSND" + struct.pack(">I", ssnd_size) + bytes(8) + audio
    body += b"".join(name + struct.pack(">I", len(data)) + data for name, data in behind)
    return b"FORM" + struct.pack(">I", len(body)) + body


SIZE = 8 + 16_000


@pytest.mark.parametrize("size", [0, 0x7F00_0008, 0x7EFF_FFFE, 0xFFFF_FFFF])
@pytest.mark.parametrize("frames", [0, 0x3F80_0000])
def test_an_aiff_written_into_a_pipe_is_decoded_to_its_end(size: int, frames: int) -> None:
    assert len(decoded(aiff(frames, size)).samples) == 8000


def test_an_aiff_with_fewer_frames_than_it_declares_is_rejected() -> None:
    assert len(decoded(aiff(8000, SIZE, (b"NAME", b"whole!"))).samples) == 8000
    assert "declares 9,000 frames, 8,000 are there" in rejection(aiff(9000, SIZE))
    assert "declares 18,000 bytes of audio, 16,000 are there" in rejection(aiff(9000, SIZE + 2000))


def test_aiffs_joined_into_one_are_rejected() -> None:
    single = aiff(8000, SIZE)
    for second in (single, whole("AIFF", "ULAW", 44_100)):
        rejection(single + second)


def test_an_mp3_without_a_declared_length_ends_where_it_ends() -> None:
    """Nothing in it says how long it should be."""
    rng = np.random.default_rng(0)
    tone = 0.4 * np.sin(np.arange(100_000) / 20) + 0.02 * rng.uniform(-1, 1, 100_000)
    data = written(tone, 44_100, "MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.5)
    headless = data[data.index(b"\xff\xfb", 4) :]
    assert decoded(headless[: len(headless) // 2]).seconds == pytest.approx(100_000 / 44_100 / 2, abs=0.1)

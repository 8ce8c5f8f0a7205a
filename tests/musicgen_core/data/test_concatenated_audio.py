from __future__ import annotations

import io
import tempfile

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data.audio import DecodedClip, decode
from musicgen_core.data.sndfile import check_single
from musicgen_core.errors import ClipRejected

KINDS = [
    ("MP3", "MPEG_LAYER_III", 44_100),
    ("MP3", "MPEG_LAYER_III", 16_000),
    ("OGG", "VORBIS", 16_000),
    ("OGG", "OPUS", 16_000),
    ("FLAC", "PCM_16", 16_000),
    ("CAF", "PCM_16", 16_000),
    ("AU", "PCM_16", 16_000),
    ("W64", "PCM_16", 16_000),
    ("WAV", "PCM_16", 16_000),
    ("WAVEX", "PCM_24", 16_000),
    ("RF64", "PCM_16", 16_000),
    ("WAV", "IMA_ADPCM", 16_000),
]
ID3 = b"ID3\x04\0\0\0\0\0\x14" + bytes(20)


def sound(container: str, subtype: str, rate: int, seconds: float = 1.0, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    wave = 0.3 * np.sin(np.arange(round(rate * seconds)) / 10)
    soundfile.write(buffer, np.stack([wave] * channels, axis=1), rate, format=container, subtype=subtype)
    return buffer.getvalue()


def decoded(data: bytes) -> DecodedClip:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        return decode(file)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind)))
def test_joined_files_are_rejected_and_single_ones_decoded(kind: tuple[str, str, int]) -> None:
    single = sound(*kind)
    assert decoded(single).seconds == pytest.approx(1, abs=0.1)
    with pytest.raises(ClipRejected, match=r"it is several (sound files|MP3s) joined into one"):
        decoded(single + sound(*kind, seconds=2.0))


@pytest.mark.parametrize(
    "between", [ID3, b"TAG" + bytes(125), b"\xff\xfb junk \xff" * 50], ids=["ID3v2", "ID3v1", "junk"]
)
def test_tags_between_joined_mp3s_hide_nothing(between: bytes) -> None:
    single = sound("MP3", "MPEG_LAYER_III", 32_000, channels=2)
    assert decoded(ID3 + single + between).seconds == pytest.approx(1, abs=0.1)
    with pytest.raises(ClipRejected, match=r"only 1\.0 of its 3\.\d s can be read"):
        decoded(ID3 + single + between + sound("MP3", "MPEG_LAYER_III", 32_000, 2.0, channels=2))


def test_an_mp3_whose_length_is_guessed_too_short_is_rejected() -> None:
    undeclared = sound("MP3", "MPEG_LAYER_III", 32_000).replace(b"Xing", bytes(4), 1)
    with pytest.raises(ClipRejected, match=r"only 0\.\d of its 1\.\d s can be read.*doesn't declare its length"):
        decoded(undeclared)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"OggS\0\2" + bytes(8), b"\xff\xfb\x90\xc4", b"fLaC\0\0\0\x22"]),
    st.binary(min_size=1, max_size=400),
)
def test_any_bytes_are_looked_through_to_their_end(magic: bytes, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(magic + data)
        file.flush()
        for container in ("MP3", "OGG"):
            check_single(file.fileno(), container, 1e9)

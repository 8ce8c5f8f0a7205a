"""Every common format is decoded with its sound, its duration and its samples."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.data.audio import decode, resample
from musicgen_core.data.sndfile import decode_with_sndfile
from tests.musicgen_core.data.audio_files import OTHERS, RATES, SUBTYPES, decoded, noise, rejection, written

CONTAINERS = [("WAV", "LITTLE"), ("WAV", "BIG"), ("WAVEX", "LITTLE"), ("RF64", "LITTLE")]


def strongest_hertz(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


@pytest.mark.parametrize(("format", "endian"), CONTAINERS)
@pytest.mark.parametrize("subtype", SUBTYPES)
@settings(max_examples=4, deadline=None)
@given(rate=st.sampled_from(RATES), channels=st.integers(1, 8), hertz=st.integers(100, 3500))
def test_every_common_wav_keeps_its_sound_and_duration(
    subtype: str, format: str, endian: str, rate: int, channels: int, hertz: int
) -> None:
    mono = 0.5 * np.sin(2 * np.pi * hertz * np.arange(rate // 2) / rate)
    clip = decoded(written(np.tile(mono[:, None], channels), rate, format, subtype, endian=endian))
    assert clip.seconds == pytest.approx(0.5, abs=1 / rate) and clip.rate == rate
    assert clip.samples.dtype == np.float32 and clip.samples.ndim == 1
    samples = resample(clip.samples, clip.rate)
    assert samples.dtype == np.float32 and abs(len(samples) - 0.5 * SAMPLE_RATE) <= 1
    assert strongest_hertz(samples) == pytest.approx(hertz, abs=4)
    assert np.sqrt(np.mean(samples[2000:-2000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_of_pythons_own_writer_is_decoded_exactly(channels: int) -> None:
    values = np.random.default_rng(0).integers(-(2**15), 2**15, (1000, channels)).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as wav:
        wav.setparams((channels, 2, 44_100, 1000, "NONE", ""))
        wav.writeframes(values.tobytes())
    np.testing.assert_array_equal(decoded(buffer.getvalue()).samples, values.mean(axis=1).astype(np.float32) / 2**15)


@pytest.mark.parametrize(("format", "endian"), CONTAINERS)
@pytest.mark.parametrize("subtype", SUBTYPES)
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_uncompressed_audio_has_the_very_samples_of_libsndfile(
    tmp_path: Path, subtype: str, format: str, endian: str, channels: int
) -> None:
    (tmp_path / "a.wav").write_bytes(written(noise(3000, channels), 44_100, format, subtype, endian=endian))
    with open(tmp_path / "a.wav", "rb") as file:
        mono, rate = decode_with_sndfile(file.fileno(), 1 << 30)
        clip = decode(file)
    assert clip.rate == rate
    np.testing.assert_array_equal(clip.samples, mono.samples)


@pytest.mark.parametrize(("format", "subtype"), OTHERS)
def test_other_formats_named_wav_are_decoded(format: str, subtype: str) -> None:
    mono = 0.5 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    clip = decoded(written(np.stack([mono, mono], axis=1), 44_100, format, subtype))
    assert clip.rate == 44_100 and clip.seconds == pytest.approx(1, abs=0.05)
    assert strongest_hertz(resample(clip.samples, clip.rate)) == pytest.approx(440, abs=2)


def test_an_mp3_without_a_declared_length_is_decoded_whole() -> None:
    """Players and encoders in a pipe write no first frame with the length."""
    sound = 0.4 * np.sin(np.arange(100_000) / 20) + 0.02 * noise(100_000)

    def headless(mode: str, level: float) -> bytes:
        data = written(sound, 44_100, "MP3", "MPEG_LAYER_III", bitrate_mode=mode, compression_level=level)
        return data[data.index(b"\xff\xfb", 4) :]

    clip = decoded(headless("CONSTANT", 0.5))
    assert clip.seconds == pytest.approx(100_000 / 44_100, abs=0.1)
    assert "it is an MP3 that doesn't declare its length" in rejection(headless("VARIABLE", 0.2))

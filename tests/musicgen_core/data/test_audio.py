from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_core.codes import SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data.audio import decode_wav
from musicgen_core.errors import ClipRejected

MakeWav = Callable[..., bytes]
SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"]
RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]


def wav_of(samples: NDArray[np.float64], rate: int = SAMPLE_RATE, subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def strongest_hertz(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


@pytest.mark.parametrize("subtype", SUBTYPES)
@settings(max_examples=15, deadline=None)
@given(rate=st.sampled_from(RATES), channels=st.integers(1, 8), hertz=st.integers(100, 3500))
def test_every_common_wav_keeps_its_sound_and_duration(
    make_wav: MakeWav, subtype: str, rate: int, channels: int, hertz: int
) -> None:
    clip = decode_wav(make_wav(hertz, 0.5, rate, channels, subtype))
    assert clip.seconds == pytest.approx(0.5, abs=1 / rate)
    assert abs(len(clip.samples) - 0.5 * SAMPLE_RATE) <= 2
    assert clip.samples.dtype == np.float32 and clip.samples.ndim == 1
    assert strongest_hertz(clip.samples) == pytest.approx(hertz, abs=4)
    middle = clip.samples[2000:-2000]
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


def test_channels_are_mixed_by_their_mean() -> None:
    channels = np.random.default_rng(0).uniform(-0.9, 0.9, (1000, 3))
    np.testing.assert_allclose(decode_wav(wav_of(channels)).samples, channels.mean(axis=1), atol=1e-6)


def test_a_sound_above_the_new_rates_half_is_removed_and_not_folded_down(make_wav: MakeWav) -> None:
    assert np.abs(decode_wav(make_wav(20_000, 0.5, 48_000)).samples[2000:-2000]).max() < 0.01


def test_samples_at_the_codecs_rate_are_left_as_they_are() -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 5000)
    np.testing.assert_array_equal(decode_wav(wav_of(samples)).samples, samples.astype(np.float32))


def test_a_wav_that_breaks_off_gives_what_is_there(make_wav: MakeWav) -> None:
    """As recorders that lost power leave them: the header tells of more than there is."""
    whole = make_wav(seconds=1.0)
    clip = decode_wav(whole[: len(whole) // 2])
    assert clip.seconds == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(clip.samples, decode_wav(whole).samples[: len(clip.samples)])


def spoilt(*values: float) -> NDArray[np.float64]:
    samples = np.full(2000, 0.1)
    samples[100 : 100 + len(values)] = values
    return samples


opposite = np.sin(np.arange(2000)) * 0.5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "0 bytes"),
        (b"RIFF\x24\x00\x00\x00WAVE this is not audio", "not decodable as audio"),
        (b"ID3 nor is this" * 100, "1,500 bytes"),
        (bytes(5000), "not decodable as audio"),
        (wav_of(np.zeros((0, 2))), "it holds no samples"),
        (wav_of(np.zeros(2000)), "all its samples are zero"),
        (wav_of(np.stack([opposite, -opposite], axis=1)), "its channels cancel each other out"),
        (wav_of(spoilt(np.nan)), "1 of its samples are not finite"),
        (wav_of(spoilt(np.inf, -np.inf)), "2 of its samples are not finite"),
        (wav_of(spoilt(1e300), subtype="DOUBLE"), "1 of its samples are not finite"),
        (wav_of(np.full(SAMPLES_PER_FRAME - 1, 0.1)), "less than one frame of codes"),
        (wav_of(np.full(159, 0.1), rate=8000), "it lasts 0.0199 s, less than one frame of codes"),
    ],
)
def test_what_cannot_be_used_is_rejected_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ClipRejected) as rejected:
        decode_wav(data)
    assert reason in str(rejected.value)
    assert "BytesIO" not in str(rejected.value) and "\n" not in str(rejected.value)


@pytest.mark.parametrize(("samples", "rate"), [(SAMPLES_PER_FRAME, SAMPLE_RATE), (160, 8_000), (3840, 192_000)])
def test_one_frame_is_enough(samples: int, rate: int) -> None:
    assert len(decode_wav(wav_of(np.full(samples, 0.1), rate)).samples) == SAMPLES_PER_FRAME


@settings(max_examples=150, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 47), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_decoded_or_rejected_and_never_another_error(
    make_wav: MakeWav, flips: list[tuple[int, int]]
) -> None:
    data = bytearray(make_wav(seconds=0.05))
    for place, change in flips:
        data[place] ^= change
    try:
        clip = decode_wav(bytes(data))
    except ClipRejected:
        return
    assert np.isfinite(clip.samples).all() and len(clip.samples) >= SAMPLES_PER_FRAME

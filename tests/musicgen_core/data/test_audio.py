"""Decoding in blocks and in threads, and resampling."""

from __future__ import annotations

import gc
import io
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.data import mix_down
from musicgen_core.data.audio import decode, resample
from musicgen_core.errors import ClipRejected
from tests.fixture_types import MakeWav
from tests.musicgen_core.data.audio_files import OTHERS, RATES, SUBTYPES, decoded, noise, rejection, written


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), *OTHERS])
def test_blocks_decode_to_the_same_samples_as_the_whole(
    format: str, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = written(noise(7000, 2), 44_100, format, subtype)
    whole = decoded(data).samples
    for block in (2 * 997, 2 * 3500):
        monkeypatch.setattr(mix_down, "BLOCK", block)
        np.testing.assert_array_equal(decoded(data).samples, whole)


def test_many_channels_dont_take_as_many_times_the_memory() -> None:
    data = written(noise(500_000, 16), 44_100, subtype="PCM_16")
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        del data
        gc.collect()
        tracemalloc.start()
        clip = decode(file)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < clip.samples.nbytes + 2 * 4 * mix_down.BLOCK  # all channels at once: 32 MB


def test_decoding_is_thread_safe() -> None:
    files = [written(noise(5000 + 100 * i, 2), 44_100, subtype=subtype) for i in range(4) for subtype in SUBTYPES]
    files += [written(noise(5000, 2), 44_100, *other) for other in OTHERS]
    files += [files[0][:-1]]

    def outcome(data: bytes) -> bytes | str:
        try:
            return decoded(data).samples.tobytes()
        except ClipRejected as error:
            return str(error)

    alone = [outcome(data) for data in files]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(outcome, files * 4)) == alone * 4


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16")])
def test_the_file_is_read_from_its_beginning_and_left_open(tmp_path: Path, format: str, subtype: str) -> None:
    (tmp_path / "a.wav").write_bytes(data := written(noise(50_000), format=format, subtype=subtype))
    samples = decoded(data).samples
    with open(tmp_path / "a.wav", "rb") as file:
        file.read(10)
        file.seek(0)  # within the buffer: the descriptor stays where reading ahead took it
        for _ in range(2):
            np.testing.assert_array_equal(decode(file).samples, samples)
        assert not file.closed and file.seek(0) == 0 and file.read(10) == data[:10]


def test_no_descriptor_is_left_open() -> None:
    data = written(noise(1000), subtype="PCM_16")
    start = data.index(b"data") + 4
    before = len(list(Path("/dev/fd").iterdir()))
    assert len(decoded(data[:start] + bytes(4) + data[start + 4 :]).samples) == 1000  # by a plain copy
    for broken in (b"RIFF", data[:-1], data.replace(b"data", b"dada"), data[:20] + b"\x63" + data[21:]):
        rejection(broken)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_resampling_does_not_alias(make_wav: MakeWav) -> None:
    clip = decoded(make_wav(20_000, 0.5, 48_000))
    assert np.abs(resample(clip.samples, clip.rate)[2000:-2000]).max() < 0.01


def test_samples_at_the_codecs_rate_are_left_as_they_are() -> None:
    samples = noise(5000).astype(np.float32)
    clip = decoded(written(samples))
    np.testing.assert_array_equal(clip.samples, samples)
    assert resample(clip.samples, clip.rate) is clip.samples


@pytest.mark.parametrize("rate", RATES)
def test_resampling_keeps_the_duration(rate: int) -> None:
    resampled = resample(noise(rate + 7).astype(np.float32), rate)
    assert resampled.dtype == np.float32 and resampled.flags.c_contiguous
    assert len(resampled) == pytest.approx((rate + 7) * SAMPLE_RATE / rate, abs=1)


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_stereo_keeps_two_channels_and_takes_the_mean_of_others(
    channels: int, format: str, subtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mix_down, "BLOCK", channels * 997)
    data = written(noise(7000, channels), 44_100, format, subtype)
    stereo, mono = decoded(data, stereo=True), decoded(data)
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert (stereo.samples.shape, stereo.samples.dtype) == ((2, 7000), np.float32)
    assert (stereo.rate, stereo.seconds) == (mono.rate, mono.seconds)
    np.testing.assert_array_equal(stereo.samples, whole.T if channels == 2 else np.stack([mono.samples] * 2))


def test_stereo_rejects_what_mono_rejects() -> None:
    one = noise(5000, 1)
    for samples in (np.zeros((5000, 2)), np.hstack([one, -one]), noise(10, 2), np.full((5000, 2), np.nan)):
        for data in (written(samples, 44_100), written(samples, 44_100)[:-8]):
            assert rejection(data, stereo=True) == rejection(data)


def test_both_channels_are_resampled_like_one() -> None:
    stereo = noise(2, 48_000).astype(np.float32)
    both = resample(stereo, 48_000, 44_100)
    assert both.shape == (2, 44_100) and both.flags.c_contiguous
    for channel, alone in zip(both, stereo, strict=True):
        np.testing.assert_allclose(channel, resample(alone, 48_000, 44_100), atol=1e-6)
    assert resample(stereo, 48_000, 48_000) is stereo

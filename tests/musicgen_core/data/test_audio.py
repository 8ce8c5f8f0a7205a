from __future__ import annotations

import gc
import io
import tempfile
import tracemalloc
import wave
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data import mix_down
from musicgen_core.data.audio import DecodedClip, decode, resample
from musicgen_core.data.sndfile import decode_with_sndfile
from musicgen_core.errors import ClipRejected

MakeWav = Callable[..., bytes]
Array = NDArray[Any]
SUBTYPES = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"]
CONTAINERS = [("WAV", "LITTLE"), ("WAV", "BIG"), ("WAVEX", "LITTLE"), ("RF64", "LITTLE")]
RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]
OTHERS = [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("AIFF", "PCM_16"), ("MP3", "MPEG_LAYER_III"), ("W64", "PCM_16"),
          ("CAF", "PCM_16"), ("AU", "PCM_16"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM")]  # fmt: skip


def decoded(data: bytes, **limits: int) -> DecodedClip:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return decode(file, **limits)


def rejection(data: bytes, **limits: int) -> str:
    with pytest.raises(ClipRejected) as rejected:
        decoded(data, **limits)
    reason = str(rejected.value)
    assert reason and reason.isprintable() and "opening" not in reason and "object" not in reason
    return reason


def written(samples: Array, rate: int = SAMPLE_RATE, format: str = "WAV", subtype: str = "FLOAT", **how: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=format, subtype=subtype, **how)
    return buffer.getvalue()


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).uniform(-0.9, 0.9, shape)


def strongest_hertz(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(samples)


# Formats.


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


# Decoding.


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


# Rejections.


def spoilt(*values: float, at: int = 100, channels: int = 1, channel: int = 0) -> Array:
    samples = np.full((2000, channels), 0.1)
    samples[at : at + len(values), channel] = values
    return samples


opposite = np.sin(np.arange(2000)) * 0.5


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not decodable as audio (Format not recognised; 0 bytes)"),
        (b"RIFF\x24\x00\x00\x00WAVE this is not audio", "not decodable as audio (Error in WAV file"),
        (b"ID3 nor is this" * 100, "1,500 bytes"),
        (bytes(5000), "not decodable as audio"),
        (written(np.zeros((0, 2))), "it holds no samples"),
        (written(np.zeros(2000)), "all its samples are zero"),
        (written(np.zeros((2000, 2))), "all its samples are zero"),
        (written(np.stack([opposite, -opposite], axis=1)), "its channels cancel each other out"),
        (written(spoilt(np.nan)), "1 of its samples are not finite"),
        (written(spoilt(np.inf, -np.inf)), "2 of its samples are not finite"),
        (written(np.concatenate([spoilt(np.inf), spoilt(-np.inf)], axis=1)), "2 of its samples are not finite"),
        (written(spoilt(1e300), subtype="DOUBLE"), "1 of its samples are not finite"),
        (written(np.full((2000, 2), 3e38)), "its samples reach inf, which is no audio"),
        (written(spoilt(-1e20)), "its samples reach 1e+20, which is no audio"),
        (written(np.full(SAMPLES_PER_FRAME - 1, 0.1)), "it lasts 0.0200 s, less than one frame of codes"),
        (written(np.full(159, 0.1), rate=8000), "it lasts 0.0199 s, less than one frame of codes"),
    ],
    # A written wav tells its second: named by its bytes, the test would have another name in each process.
    ids=lambda value: "data" if isinstance(value, bytes) else None,
)
def test_unusable_clips_are_rejected_with_the_reason(data: bytes, reason: str) -> None:
    assert reason in rejection(data)


@settings(max_examples=60, deadline=None)
@given(
    channels=st.integers(1, 8),
    data=st.data(),
    wrong=st.lists(st.sampled_from([np.nan, np.inf, -np.inf]), min_size=1, max_size=5),
)
def test_every_sample_that_is_not_finite_is_found_and_counted(
    channels: int, data: st.DataObject, wrong: list[float]
) -> None:
    samples = noise(2000, channels)
    places = st.tuples(st.integers(0, 1999), st.integers(0, channels - 1))
    for place, value in zip(data.draw(st.sets(places, min_size=len(wrong), max_size=len(wrong))), wrong, strict=True):
        samples[place] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix_down, "BLOCK", data.draw(st.sampled_from([512, 1 << 20])))
        assert rejection(written(samples)) == f"{len(wrong)} of its samples are not finite"


@pytest.mark.parametrize("place", [0, 950, 1999])
def test_sound_anywhere_is_not_rejected_as_silence(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix_down, "BLOCK", 100)
    samples = np.zeros((2000, 2))
    for loudness in (1e-30, -1e-30):
        samples[place] = 0, loudness
        assert decoded(written(samples)).samples[place] == np.float32(loudness / 2)
    samples[place] = 0.5, -0.5
    assert rejection(written(samples)) == "its channels cancel each other out"


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_other_formats_that_break_off_are_rejected(format: str, subtype: str) -> None:
    data = written(noise(40_000, 2), 44_100, format, subtype)
    for there in (0.3, 0.6, 0.95):
        rejection(data[: int(there * len(data))])
    if format == "MP3":
        assert "it breaks off: its header declares 40,000 frames, " in rejection(data[: len(data) // 2])


def test_an_mp3_without_a_declared_length_is_decoded_whole() -> None:
    """Players and encoders in a pipe write no first frame with the length."""
    sound = 0.4 * np.sin(np.arange(100_000) / 20) + 0.02 * noise(100_000)

    def headless(mode: str, level: float) -> bytes:
        data = written(sound, 44_100, "MP3", "MPEG_LAYER_III", bitrate_mode=mode, compression_level=level)
        return data[data.index(b"\xff\xfb", 4) :]

    clip = decoded(headless("CONSTANT", 0.5))
    assert clip.seconds == pytest.approx(100_000 / 44_100, abs=0.1)
    assert "it is an MP3 that doesn't declare its length" in rejection(headless("VARIABLE", 0.2))


def test_a_flac_of_unknown_length_is_rejected_with_the_reason() -> None:
    data = bytearray(written(noise(20_000), 44_100, "FLAC", "PCM_16"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # the total samples in STREAMINFO (RFC 9639, section 8.2)
    assert rejection(bytes(data)) == "its header doesn't declare its length, which libsndfile needs to decode FLAC"


@pytest.mark.parametrize("rate", [1, 8000, 32_000, 96_000])
def test_too_large_clips_are_rejected_naming_the_setting(rate: int) -> None:
    frames = 3840
    data = written(noise(frames), rate)
    needed = 4 * frames * max(SAMPLE_RATE, rate) // rate
    assert decoded(data, max_bytes=needed).seconds == frames / rate
    assert "max_clip_gib" in rejection(data, max_bytes=needed - 1)


def test_a_rate_of_one_hertz_does_not_become_gigabytes() -> None:
    reason = rejection(written(noise(20_000), 1))
    assert "it lasts 20,000 s, which takes 2.38 GiB as mono fp32, more than max_clip_gib (2)" in reason


@settings(max_examples=80, deadline=None)
@given(rate=st.sampled_from(RATES) | st.integers(1000, 200_000), extra=st.integers(-3, 3))
def test_a_clip_has_at_least_one_frame_of_codes(rate: int, extra: int) -> None:
    frames = max(1, -(-rate // FRAME_RATE) + extra)
    data = written(np.full(frames, 0.1), rate)
    if frames / rate < 1 / FRAME_RATE:
        assert "less than one frame of codes (0.02 s)" in rejection(data)
    else:
        clip = decoded(data)
        assert len(clip.samples) == frames and len(resample(clip.samples, rate)) >= SAMPLES_PER_FRAME


HEADERS = [written(noise(800, 2), 16_000, *kind) for kind in
           [*(("WAV", subtype) for subtype in SUBTYPES), ("WAVEX", "PCM_24"), ("RF64", "PCM_16"), *OTHERS]]  # fmt: skip
WORDS = st.binary(min_size=4, max_size=4) | st.sampled_from([b"\0\0\0\0", b"\xff" * 4, b"\xff\xff\xff\x7f", b"data"])


@settings(max_examples=400, deadline=None)
@given(
    original=st.sampled_from(HEADERS),
    changes=st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=1) | WORDS), max_size=4),
    kept=st.none() | st.integers(0, 4000),
)
def test_damaged_files_are_decoded_or_rejected(
    original: bytes, changes: list[tuple[int, bytes]], kept: int | None
) -> None:
    data = bytearray(original)
    for place, change in changes:
        data[place : place + len(change)] = change
    assert_decoded_or_rejected(bytes(data[:kept]))


MAGICS = [b"", b"RIFF\0\0\0\0WAVE", b"RIFX\0\0\0\0WAVEfmt ", b"RF64\xff\xff\xff\xffWAVEds64", b"ID3", b"fLaC", b"OggS",
          b"FORM", b"riff", b"caff", b"\xff\xfb"]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(magic=st.sampled_from(MAGICS), rest=st.binary(max_size=200))
def test_random_bytes_are_decoded_or_rejected(magic: bytes, rest: bytes) -> None:
    assert_decoded_or_rejected(magic + rest)


def assert_decoded_or_rejected(data: bytes) -> None:
    try:
        clip = decoded(data, max_bytes=1 << 28)
    except ClipRejected:
        rejection(data, max_bytes=1 << 28)  # with a reason that can be read
        return
    assert np.isfinite(clip.samples).all() and clip.samples.any() and clip.seconds >= 1 / FRAME_RATE


# Resampling.


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

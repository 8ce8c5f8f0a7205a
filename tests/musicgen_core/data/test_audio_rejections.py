"""Clips that are rejected, with the reason: silent, not finite, too short, too large, cut off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.codes import FRAME_RATE, SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data import mix_down
from musicgen_core.data.audio import resample
from tests.musicgen_core.data.audio_files import RATES, Array, decoded, noise, rejection, written


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

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from musicgen_core import encoding
from musicgen_core.codec import Codec, Codes, StartedBatch
from musicgen_core.codes import SAMPLE_RATE, STEREO
from musicgen_core.data.audio import DecodedClip, resample
from musicgen_core.encoding import Encoded, encode_clips
from musicgen_core.errors import ClipRejected, DeviceError
from musicgen_core.melody import Excerpt, extract_chroma
from tests.musicgen_core.melodies import music as tune


def music(seconds: float, rate: int = SAMPLE_RATE, seed: int = 0) -> NDArray[np.float32]:
    """Return swelling chords with some noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    sound = 0.05 * rng.standard_normal(len(time))
    for hertz in rng.uniform(60, 3000, 4):
        sound += 0.2 * np.sin(2 * np.pi * rng.uniform(0.2, 2) * time) * np.sin(2 * np.pi * hertz * time)
    return sound.astype(np.float32)


def alone(codec: Codec, samples: NDArray[np.float32], rate: int) -> Codes:
    """Return the codes of a clip encoded alone."""
    return codec.encode(torch.from_numpy(resample(samples, rate))[None, None])[0].numpy().astype(np.uint16)


class RecordingCodec(Codec):
    """Codec that records its batches and can simulate running out of memory."""

    def __init__(self, codec: Codec, batch_seconds: float | None = None, fits: float = float("inf")) -> None:
        self.__dict__.update(codec.__dict__)
        self.batch_seconds = batch_seconds or codec.batch_seconds
        self.fits = fits
        self.batches: list[list[float]] = []

    def start(self, clips: Sequence[NDArray[np.float32]], rate: int, excerpts: Sequence[Excerpt] = ()) -> StartedBatch:
        if sum(map(len, clips)) / rate > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append([len(clip) / rate for clip in clips])
        return super().start(clips, rate, excerpts)


def one_odd_clip(odd: float, alike: float, count: int, drawn: list[int]) -> Iterator[tuple[int, DecodedClip]]:
    """Yield a clip of `odd` seconds and others of `alike`, and record the indices requested in `drawn`."""
    for index in range(count):
        drawn.append(index)
        yield index, DecodedClip(music(alike if index else odd), SAMPLE_RATE)


def agreement(one: Codes, other: Codes) -> float:
    assert one.shape == other.shape
    return float((one == other).mean())


@given(
    lengths=st.lists(st.floats(0.02, 1.5), min_size=1, max_size=8),
    rates=st.lists(st.sampled_from([8_000, 22_050, 32_000, 44_100, 44_056, 48_000]), min_size=1, max_size=3),
    batch_seconds=st.floats(0.5, 8.0),
)
@settings(max_examples=10)
def test_the_codes_of_a_clip_are_those_it_has_alone(
    codec: Codec, lengths: list[float], rates: list[int], batch_seconds: float
) -> None:
    clips = [
        DecodedClip(music(length, rate := rates[index % len(rates)], seed=index), rate)
        for index, length in enumerate(lengths)
    ]
    found = list(encode_clips(RecordingCodec(codec, batch_seconds), enumerate(clips)))
    assert [index for index, _ in found] == list(range(len(clips)))
    equal = total = 0
    for clip, (_, encoded) in zip(clips, found, strict=True):
        assert isinstance(encoded, Encoded)
        assert encoded.seconds == pytest.approx(len(clip.samples) / clip.rate)
        expected = alone(codec, clip.samples, clip.rate)
        assert encoded.codes.shape == expected.shape
        equal, total = equal + int((encoded.codes == expected).sum()), total + expected.size
    assert equal >= 0.999 * total


def test_clips_of_many_lengths_share_batches_with_little_padding(codec: Codec) -> None:
    recorder = RecordingCodec(codec, 10.0)
    rng = np.random.default_rng(1)
    clips = [DecodedClip(music(length), SAMPLE_RATE) for length in rng.uniform(0.3, 2.0, 60)]
    list(encode_clips(recorder, enumerate(clips)))
    assert len(recorder.batches) <= 15
    filled = sum(max(batch) * len(batch) for batch in recorder.batches)
    assert filled <= 1.25 * sum(map(sum, recorder.batches))
    assert all(max(batch) * len(batch) <= 10.0 + 1e-6 for batch in recorder.batches)


def test_a_clip_of_a_rare_length_does_not_wait_for_ever(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_CLIPS", 4)
    drawn: list[int] = []
    clips = one_odd_clip(0.9, 0.1, 100, drawn)
    first = next(encode_clips(RecordingCodec(codec, 1000.0), clips))
    assert first[0] == 0 and drawn[-1] < 30


def test_a_clip_of_another_length_does_not_delay_later_ones(codec: Codec) -> None:
    drawn: list[int] = []
    clips = one_odd_clip(0.4, 1.0, 40, drawn)
    assert next(encode_clips(RecordingCodec(codec, 1.0), clips))[0] == 0
    assert drawn[-1] < 10


def test_rejections_keep_their_position(codec: Codec) -> None:
    clips = [DecodedClip(music(0.5), SAMPLE_RATE), ClipRejected("broken"), DecodedClip(music(0.2), SAMPLE_RATE)]
    found = [value for _, value in encode_clips(codec, enumerate(clips))]
    assert [type(value) for value in found] == [Encoded, ClipRejected, Encoded]


@pytest.mark.parametrize("rate", [32_000, 44_100])
def test_segmented_encoding_equals_encoding_at_once(codec: Codec, rate: int) -> None:
    recorder = RecordingCodec(codec)
    recorder.takes_melody = True
    samples = tune(126).numpy()[: round(125.5 * rate)] if rate == SAMPLE_RATE else music(125.5, rate)
    [(_, encoded)] = encode_clips(recorder, [("track", DecodedClip(samples, rate))])
    assert isinstance(encoded, Encoded)
    assert max(map(max, recorder.batches)) <= encoding.ENCODE_SECONDS
    whole = alone(codec, samples, rate)
    assert agreement(encoded.codes, whole) >= 0.999
    new = encoding.ENCODE_SECONDS - encoding.LEAD_SECONDS - encoding.TAIL_SECONDS
    away = np.ones(whole.shape[1], dtype=bool)
    for seam in range(new * 50, whole.shape[1], new * 50):
        away[seam - 50 : seam + 50] = False
    if rate == 32_000:
        assert (encoded.codes[:, away] == whole[:, away]).all()
    assert encoded.chroma is not None and encoded.chroma.dtype == np.uint8
    assert np.array_equal(encoded.chroma, extract_chroma(torch.from_numpy(resample(samples, rate))[None])[0])


def test_the_chroma_of_a_clip_is_that_it_has_alone_at_32_khz(codec: Codec) -> None:
    recorder = RecordingCodec(codec, 8.0)
    recorder.takes_melody = True
    whole = tune(126).numpy()
    clips = [
        DecodedClip(whole[9 * end : 10 * end], rate)
        for end in (32_000, 96_000, 96_100, 900)
        for rate in (32_000, 48_000)
    ]
    for clip, (_, encoded) in zip(clips, encode_clips(recorder, enumerate(clips)), strict=True):
        assert isinstance(encoded, Encoded) and encoded.chroma is not None
        [alone] = extract_chroma(torch.from_numpy(resample(clip.samples, clip.rate))[None])
        assert np.array_equal(encoded.chroma, alone)


def test_chroma_of_stereo_clips_is_that_of_their_mean(codec: Codec) -> None:
    recorder = RecordingCodec(codec)
    recorder.takes_melody, recorder.shape = True, STEREO
    both = np.stack([music(2.0, seed=0), music(2.0, seed=1)])
    [(_, encoded)] = encode_clips(recorder, [(0, DecodedClip(both, SAMPLE_RATE))])
    assert isinstance(encoded, Encoded) and encoded.chroma is not None
    [expected] = extract_chroma(torch.from_numpy(both.mean(axis=0))[None])
    assert encoded.chroma.tolist() == expected.tolist()


def test_chroma_that_a_clip_brings_is_kept(codec: Codec) -> None:
    recorder = RecordingCodec(codec)
    recorder.takes_melody = True
    clip = DecodedClip(music(1.0), SAMPLE_RATE, chroma=np.array([5, 7], np.uint8))
    [(_, encoded)] = encode_clips(recorder, [(0, clip)])
    assert isinstance(encoded, Encoded) and encoded.chroma is not None and encoded.chroma.tolist() == [5, 7]


def test_out_of_memory_halves_the_batches_and_loses_nothing(codec: Codec) -> None:
    recorder = RecordingCodec(codec, 8.0, fits=2.5)
    clips = [DecodedClip(music(1.0, seed=seed), SAMPLE_RATE) for seed in range(9)]
    found = list(encode_clips(recorder, enumerate(clips)))
    assert [index for index, _ in found] == list(range(9))
    assert recorder.batch_seconds == 2.0
    for clip, (_, encoded) in zip(clips, found, strict=True):
        assert isinstance(encoded, Encoded)
        assert agreement(encoded.codes, alone(codec, clip.samples, clip.rate)) >= 0.999


def test_a_clip_that_never_fits_is_a_clear_error(codec: Codec) -> None:
    with pytest.raises(DeviceError, match="--device cpu"):
        list(encode_clips(RecordingCodec(codec, fits=0.5), [("clip", DecodedClip(music(1.0), SAMPLE_RATE))]))

"""Separating clips of any length, compared with demucs's `apply_model`."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from torch import Tensor

from musicgen_core.data.audio import DecodedClip, resample
from musicgen_core.errors import Cancelled, ClipRejected, DeviceError
from musicgen_core.generation.melody import read_melody
from musicgen_core.melody import extract_chroma
from musicgen_core.separation.clips import Separation, separated_clips
from musicgen_core.separation.separator import VOCALS, Separator

LENGTHS = (22_050, 22_049, 16_537, 16_538, 900, 60_001, 22_051, 33_075)
"""Of a segment, a little less or more; of its stride; of the shortest clip; of several segments"""
SEGMENTS = sum(math.ceil(samples / 16_537) for samples in LENGTHS)


class Recording(Separator):
    """A separator that records its batches and can simulate running out of memory."""

    def __init__(self, separator: Separator, batch: int = 1, fits: int = 1000) -> None:
        self.__dict__.update(separator.__dict__)
        self.batch_segments, self.fits = batch, fits
        self.batches: list[int] = []

    def without(self, segments: Tensor, left_out: Sequence[Set[str]]) -> Tensor:
        if len(segments) > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(len(segments))
        return super().without(segments, left_out)


def stereo(samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Return tones with noise, different in both channels, not centred."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 44_100
    tones = [np.sin(2 * np.pi * hertz * time) for hertz in rng.uniform(60, 3000, 2)]
    return (0.01 + 0.2 * np.stack(tones) + 0.05 * rng.standard_normal((2, samples))).astype(np.float32)


def by_demucs(
    separator: Separator, samples: NDArray[np.float32], names: Sequence[str] = ("drums", "bass", "other")
) -> NDArray[np.float32]:
    """Return the sum of some sources, as `demucs.api.Separator` does without random shifts."""
    from demucs.apply import apply_model

    wav = torch.from_numpy(samples)
    mono = wav.mean(0)
    mean, deviation = mono.mean(), mono.std() + 1e-8
    with torch.no_grad():
        [sources] = apply_model(separator._model, ((wav - mean) / deviation)[None], shifts=0)
    kept = sources[[separator._model.sources.index(name) for name in names]]
    return (kept.sum(0) * deviation + mean).mean(0).numpy()


def removed(separator: Separator, clips: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    found = list(
        separated_clips(Separation(separator), ((index, DecodedClip(clip, 44_100)) for index, clip in enumerate(clips)))
    )
    assert [index for index, _ in found] == list(range(len(clips)))
    assert all(isinstance(clip, DecodedClip) and clip.rate == 44_100 for _, clip in found)
    return [clip.samples for _, clip in found if isinstance(clip, DecodedClip)]


@pytest.mark.parametrize("samples", LENGTHS)
def test_a_clip_without_vocals_is_the_sum_of_demucs_other_sources(separator: Separator, samples: int) -> None:
    clip = stereo(samples)
    [found] = removed(separator, [clip])
    assert found.shape == (samples,) and found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, by_demucs(separator, clip), rtol=0, atol=2e-6)
    assert np.abs(found - clip.mean(0)).max() > 0.05  # the model does something


@pytest.mark.parametrize("batch", [3, 100])
def test_clips_in_one_batch_are_as_alone(separator: Separator, batch: int) -> None:
    clips = [stereo(samples, seed) for seed, samples in enumerate(LENGTHS)]
    recording = Recording(separator, batch)
    for found, clip in zip(removed(recording, clips), clips, strict=True):
        [alone] = removed(separator, [clip])
        np.testing.assert_allclose(found, alone, rtol=0, atol=2e-6)
    assert sum(recording.batches) == SEGMENTS and len(recording.batches) == math.ceil(SEGMENTS / batch)


@pytest.mark.parametrize(("removes", "names"), [(False, ("other", "vocals")), (True, ("other",))])
def test_the_melody_of_a_clip_is_what_remains_of_it_without_drums_and_bass(
    separator: Separator, removes: bool, names: tuple[str, ...]
) -> None:
    clips = [stereo(samples, seed) for seed, samples in enumerate((60_001, 900, 22_050))]
    separation = Separation(Recording(separator, 2), VOCALS if removes else frozenset(), extract_chroma=True)
    found = list(separated_clips(separation, ((i, DecodedClip(clip, 44_100)) for i, clip in enumerate(clips))))
    classes = set()
    for clip, (_, done) in zip(clips, found, strict=True):
        assert isinstance(done, DecodedClip) and done.chroma is not None and done.rate == 44_100
        melody = torch.from_numpy(resample(by_demucs(separator, clip, names), 44_100))
        assert done.chroma.tolist() == extract_chroma(melody[None])[0].tolist()
        classes.update(done.chroma.tolist())
        expected = by_demucs(separator, clip) if removes else (clip[0] + clip[1]) / 2
        np.testing.assert_allclose(done.samples, expected, rtol=0, atol=2e-6 if removes else 0)
    assert len(classes) > 1


def test_a_melody_to_follow_has_no_drums_and_bass(separator: Separator, tmp_path: Path) -> None:
    tune, clip = tmp_path / "tune.wav", stereo(60_001)
    soundfile.write(tune, clip.T, 44_100, subtype="FLOAT")
    melody, whole = read_melody(str(tune), separator), read_melody(str(tune))
    expected = resample(by_demucs(separator, clip, ("other", "vocals")), 44_100)
    np.testing.assert_allclose(melody.wav, expected, rtol=0, atol=1e-5)
    assert (melody.separator, whole.separator, melody.sha256) == (separator.identity, None, whole.sha256)


def test_a_clip_of_another_rate_is_resampled_for_its_melody_alone(separator: Separator) -> None:
    clip = stereo(40_000)
    separation = Separation(separator, frozenset(), extract_chroma=True)
    [(_, found)] = separated_clips(separation, [(0, DecodedClip(clip, 32_000))], channels=2)
    [(_, same)] = separated_clips(separation, [(0, DecodedClip(resample(clip, 32_000, 44_100), 44_100))])
    assert isinstance(found, DecodedClip) and isinstance(same, DecodedClip)
    assert found.rate == 32_000 and np.array_equal(found.samples, clip)
    assert found.chroma is not None and same.chroma is not None and found.chroma.tolist() == same.chroma.tolist()


def test_silence_stays_silence(separator: Separator) -> None:
    quiet, loud = np.zeros((2, 30_000), np.float32), stereo(30_000)
    found = removed(Recording(separator, 4), [quiet, loud, quiet])
    assert not found[0].any() and found[1].any() and not found[2].any()


def test_the_level_of_a_clip_is_that_of_its_result(separator: Separator) -> None:
    clip = stereo(30_000)
    [loud], [soft] = removed(separator, [clip]), removed(separator, [clip / 1000])
    np.testing.assert_allclose(soft * 1000, loud, atol=1e-4)


def test_rejections_keep_their_position_and_hold_nothing_back(separator: Separator) -> None:
    drawn: list[int] = []

    def clips() -> object:
        for index in range(40):
            drawn.append(index)
            yield index, ClipRejected("broken") if index % 20 else DecodedClip(stereo(1000, index), 44_100)

    found = separated_clips(Separation(Recording(separator, 2)), clips())  # type: ignore[arg-type]
    assert next(found)[0] == 0 and len(drawn) < 12
    rest = [(0, None), *found]
    assert [index for index, _ in rest] == list(range(40))
    assert [index for index, clip in rest[1:] if isinstance(clip, DecodedClip)] == [20]


def test_finished_clips_are_yielded_before_the_next_are_read(separator: Separator) -> None:
    drawn: list[int] = []
    clips = ((drawn.append(index) or index, DecodedClip(stereo(1000), 44_100)) for index in range(20))
    assert next(separated_clips(Separation(Recording(separator, 3)), clips))[0] == 0
    assert drawn == [0, 1, 2]


def test_out_of_memory_halves_the_batches_and_loses_nothing(separator: Separator) -> None:
    clips = [stereo(samples, seed) for seed, samples in enumerate(LENGTHS)]
    recording = Recording(separator, 8, fits=2)
    for found, clip in zip(removed(recording, clips), clips, strict=True):
        np.testing.assert_allclose(found, by_demucs(separator, clip), rtol=0, atol=2e-6)
    assert recording.batch_segments == 2 and sum(recording.batches) == SEGMENTS


def test_a_segment_that_never_fits_is_a_clear_error(separator: Separator) -> None:
    with pytest.raises(DeviceError, match="--device cpu"):
        removed(Recording(separator, 4, fits=0), [stereo(1000)])


def test_removing_vocals_stops_within_a_clip(separator: Separator) -> None:
    recording = Recording(separator)
    clips = [(0, DecodedClip(stereo(200_000), 44_100))]
    with pytest.raises(Cancelled):
        list(separated_clips(Separation(recording), clips, lambda: len(recording.batches) == 3))
    assert len(recording.batches) == 3

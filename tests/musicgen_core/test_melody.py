"""Chroma: that of audiocraft's and transformers' melody models, and of the parts of clips."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import MusicgenMelodyFeatureExtractor

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.melody import HOP, WINDOW, Excerpt, crop_chroma, extract_chroma, match_length
from tests.musicgen_core.melodies import condition_of, make_conditioner, music

LENGTHS = (1, 777, WINDOW - 1, WINDOW, WINDOW + 1, 99_999, 30 * SAMPLE_RATE, 40 * SAMPLE_RATE)


@pytest.fixture
def conditioner(monkeypatch: pytest.MonkeyPatch) -> Any:
    return make_conditioner(monkeypatch)


@pytest.mark.parametrize("samples", LENGTHS)
def test_chroma_is_audiocrafts_and_transformers(conditioner: Any, samples: int) -> None:
    wav = music()[:samples]
    [chroma] = extract_chroma(wav[None])
    assert len(chroma) == max(samples, WINDOW) // HOP + 1
    assert len(set(chroma.tolist())) > 1 or samples < 99_999
    theirs = conditioner._get_wav_embedding(condition_of(wav))
    assert torch.equal(match_length(chroma, 235), theirs[0].argmax(-1))
    extractor = MusicgenMelodyFeatureExtractor()
    features = extractor(wav.numpy(), sampling_rate=SAMPLE_RATE, truncation=False)["input_features"]
    assert torch.equal(chroma, features[0].argmax(-1))


def test_silence_is_the_class_that_stands_for_no_melody(conditioner: Any) -> None:
    chroma = extract_chroma(torch.zeros(2, 50_000))
    null = conditioner._get_wav_embedding(condition_of(torch.zeros(1)))
    assert not chroma.any() and not null[0].argmax(-1).any() and null.shape[1] == 235


def test_a_rows_chroma_does_not_depend_on_its_batch() -> None:
    rows = torch.stack([music()[:100_000], music()[200_000:300_000], torch.zeros(100_000)])
    together = extract_chroma(rows)
    for row, chroma in zip(rows, together, strict=True):
        assert torch.equal(extract_chroma(row[None])[0], chroma)


@pytest.mark.parametrize("cut", [39 * SAMPLE_RATE, 21 * SAMPLE_RATE + 100, 20 * SAMPLE_RATE + 1_000])
def test_excerpts_together_have_the_chroma_of_the_whole(cut: int) -> None:
    wav = music()[:cut]
    starts = range(0, -(-cut // SAMPLE_RATE), 10)
    parts = []
    for start in starts:
        begin, stop = max(0, start - 5), None if start == starts[-1] else start + 10
        audio = wav[begin * SAMPLE_RATE : None if stop is None else (stop + 1) * SAMPLE_RATE]
        parts.append(extract_chroma(audio[None], Excerpt(begin, start, stop))[0])
    assert torch.equal(torch.cat(parts), extract_chroma(wav[None])[0])


def test_chroma_is_truncated_or_repeated_from_its_beginning() -> None:
    chroma = torch.tensor([[1, 2, 3]])
    assert match_length(chroma, 2).tolist() == [[1, 2]]
    assert match_length(chroma, 7).tolist() == [[1, 2, 3, 1, 2, 3, 1]]


def test_a_crops_chroma_is_at_its_time_and_as_long_as_a_clip_of_its_length() -> None:
    chroma = np.arange(236, dtype=np.uint8)  # of 30.1 s
    assert crop_chroma(chroma, 0, 1500).tolist() == list(range(235))
    assert crop_chroma(chroma, 64, 64).tolist() == list(range(10, 21))  # 1.28 s are 10 frames
    assert crop_chroma(chroma, 1500, 5).tolist() == [234]
    assert crop_chroma(chroma, 1400, 105).tolist() == list(range(219, 236))
    short = extract_chroma(torch.ones(1, 640))[0].numpy()  # of one frame of codes
    assert crop_chroma(short, 0, 1).tolist() == [int(short[0])]

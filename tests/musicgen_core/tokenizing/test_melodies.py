"""Tokenizing for melody models: shards hold the chroma of their clips, and know how it was computed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from upath import UPath

from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.audio import resample
from musicgen_core.data.shards import read_report, shard_paths
from musicgen_core.melody import extract_chroma
from musicgen_core.tokenizing import Tokenizer
from tests.fixture_types import Members, RowsOf


@pytest.fixture
def melodic(counting: Any) -> Any:
    """Return the codec of a model that takes a melody, counting how often it encodes."""
    counting.takes_melody = True
    return counting


def test_each_row_has_the_chroma_of_its_clip_at_32_khz(
    archive: UPath, melodic: Codec, tokens: UPath, members: Members, rows_of: RowsOf
) -> None:
    report = Tokenizer(melodic, tokens).tokenize(archive)
    assert report.chroma == "v1/mix" and read_report(tokens, "batch_1") == report
    rows = rows_of(tokens)
    assert len(rows) == 3
    for row in rows:
        audio, rate = soundfile.read(io.BytesIO(dict(members)[row.clip]), dtype="float32", always_2d=True)
        wav = resample(np.ascontiguousarray(audio.mean(axis=1)), rate)
        assert row.chroma is not None
        assert np.array_equal(row.chroma, extract_chroma(torch.from_numpy(wav)[None])[0])
        assert row.chroma[2] == 9  # A: 440, 880 or 220 Hz


def test_a_shard_without_chroma_is_encoded_again_for_a_melody_model(
    archive: UPath, melodic: Any, tokens: UPath, rows_of: RowsOf
) -> None:
    melodic.takes_melody = False
    plain = Tokenizer(melodic, tokens).tokenize(archive)
    codes = [row.codes.tolist() for row in rows_of(tokens)]
    assert plain.chroma is None and [row.chroma for row in rows_of(tokens)] == [None] * 3
    melodic.takes_melody = True
    report = Tokenizer(melodic, tokens).tokenize(archive)
    assert melodic.encoded == 6 and report.chroma is not None and report.fingerprint == plain.fingerprint
    assert [row.codes.tolist() for row in rows_of(tokens)] == codes
    assert Tokenizer(melodic, tokens).tokenize(archive) == report and melodic.encoded == 6


def test_a_model_without_a_melody_keeps_shards_with_chroma(archive: UPath, melodic: Any, tokens: UPath) -> None:
    report = Tokenizer(melodic, tokens).tokenize(archive)
    before = shard_paths(tokens, "batch_1")[0].read_bytes()
    melodic.takes_melody = False
    assert Tokenizer(melodic, tokens).tokenize(archive) == report
    assert melodic.encoded == 3 and shard_paths(tokens, "batch_1")[0].read_bytes() == before


def test_chroma_stays_when_descriptions_change(archive: UPath, melodic: Any, tokens: UPath, rows_of: RowsOf) -> None:
    Tokenizer(melodic, tokens).tokenize(archive)
    chroma = [row.chroma.tolist() for row in rows_of(tokens) if row.chroma is not None]
    report = Tokenizer(melodic, tokens, TokenizeSettings(caption="new")).tokenize(archive)
    assert melodic.encoded == 3 and report.chroma == "v1/mix"
    rows = rows_of(tokens)
    assert [row.description for row in rows] == ["new"] * 3
    assert [row.chroma.tolist() for row in rows if row.chroma is not None] == chroma
    assert len(chroma) == 3

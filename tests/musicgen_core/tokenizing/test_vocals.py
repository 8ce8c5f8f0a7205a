"""Tokenizing separated clips: codes without vocals, melodies without drums and bass, in shards that know of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.audio import DecodedClip, resample
from musicgen_core.data.shards import read_report, shard_paths
from musicgen_core.errors import Cancelled, ConfigError
from musicgen_core.separation.clips import Separation, separated_clips
from musicgen_core.separation.separator import Separator
from musicgen_core.tokenizing import Tokenizer, shard_fingerprint
from tests.fixture_types import MakeWav, Members, Pack, RowsOf


@pytest.fixture(scope="session")
def separator(demucs_weights: Path) -> Separator:
    return Separator(demucs_weights)


@pytest.fixture(scope="session")
def song(make_wav: MakeWav) -> Members:
    """Return clips of other rates, lengths and numbers of channels, and an unusable one."""
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    soundfile.write(buffer, rng.uniform(-0.5, 0.5, (48_001, 2)), 48_000, format="FLAC", subtype="PCM_16")
    return [
        ("wide.flac", buffer.getvalue()),
        ("broken.wav", b"RIFF none"),
        ("mono.wav", make_wav(440, 0.3)),
        ("three.wav", make_wav(880, 1.7, rate=44_100, channels=3)),
    ]


@pytest.fixture
def songs(tmp_path: Path, pack: Pack, song: Members) -> UPath:
    return storage.as_path(pack(tmp_path / "batch_1.zip", song))


def separated(separator: Separator, data: bytes) -> DecodedClip:
    audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    both = audio if audio.shape[1] == 2 else np.repeat(audio.mean(axis=1, keepdims=True), 2, axis=1)
    clip = DecodedClip(resample(np.ascontiguousarray(both.T), rate, separator.rate), separator.rate)
    [(_, left)] = separated_clips(Separation(separator), [(0, clip)])
    assert isinstance(left, DecodedClip)
    return left


def test_the_codes_are_those_of_the_separated_audio(
    songs: UPath, codec: Codec, separator: Separator, tokens: UPath, song: Members, rows_of: RowsOf
) -> None:
    report = Tokenizer(codec, tokens, separation=Separation(separator)).tokenize(songs)
    assert [entry.clip for entry in report.rejected] == ["broken.wav"]
    rows = {row.clip: row for row in rows_of(tokens)}
    assert list(rows) == ["wide.flac", "mono.wav", "three.wav"]
    assert [row.duration for row in rows.values()] == [48_001 / 48_000, 0.3, 1.7]
    for name, row in rows.items():
        left = separated(separator, dict(song)[name])
        samples = resample(left.samples, left.rate)
        codes = codec.encode(torch.from_numpy(samples)[None, None])[0].numpy()
        assert row.codes.shape == codes.shape and (row.codes == codes).mean() >= 0.99

    plain = storage.as_path(songs.parent / "plain")
    Tokenizer(codec, plain).tokenize(songs)
    for row in rows_of(plain):
        assert row.duration == rows[row.clip].duration and row.codes.shape == rows[row.clip].codes.shape
        assert (row.codes != rows[row.clip].codes).mean() > 0.1


def test_a_shard_is_regenerated_when_the_separator_changes(
    songs: UPath, codec: Codec, separator: Separator, tokens: UPath
) -> None:
    plain = Tokenizer(codec, tokens).tokenize(songs)
    without = Tokenizer(codec, tokens, separation=Separation(separator)).tokenize(songs)
    assert without.fingerprint != plain.fingerprint and read_report(tokens, "batch_1") == without
    written = shard_paths(tokens, "batch_1")[0].read_bytes()

    again: list[object] = []
    Tokenizer(codec, tokens, separation=Separation(separator)).tokenize(songs, on_clip=again.append)
    assert not again and shard_paths(tokens, "batch_1")[0].read_bytes() == written

    other = object.__new__(Separator)
    other.__dict__.update(separator.__dict__, identity="htdemucs@sha256:other")
    third = Tokenizer(codec, tokens, separation=Separation(other)).tokenize(songs)
    assert len({plain.fingerprint, without.fingerprint, third.fingerprint}) == 3
    assert Tokenizer(codec, tokens).tokenize(songs) == plain


def test_melodies_without_drums_and_bass_are_of_the_codes_of_the_whole(
    songs: UPath, counting: Any, separator: Separator, tokens: UPath, rows_of: RowsOf
) -> None:
    counting.takes_melody = True
    whole = Tokenizer(counting, tokens).tokenize(songs)
    before = rows_of(tokens)
    tokenizer = Tokenizer(counting, tokens, separation=Separation(separator, frozenset(), extract_chroma=True))
    report = tokenizer.tokenize(songs)
    assert counting.encoded == 6 and report.fingerprint == whole.fingerprint
    assert whole.chroma == "v1/mix" and report.chroma == f"v1/{separator.identity}"
    assert tokenizer.tokenize(songs) == report and counting.encoded == 6
    for row, earlier in zip(rows_of(tokens), before, strict=True):
        assert row.duration == earlier.duration and row.chroma is not None and earlier.chroma is not None
        assert row.chroma.shape == earlier.chroma.shape
        assert np.array_equal(row.codes, earlier.codes)
    assert any((row.chroma != earlier.chroma).any() for row, earlier in zip(rows_of(tokens), before, strict=True))


def test_separating_melodies_for_a_model_without_is_refused(codec: Codec, separator: Separator, tokens: UPath) -> None:
    with pytest.raises(ConfigError, match="--separate-melody is for models that take a melody, which debug does not"):
        Tokenizer(codec, tokens, separation=Separation(separator, frozenset(), extract_chroma=True))


def test_fingerprints_without_a_separator_have_not_changed() -> None:
    expected = "sha256:679161119f01b430e8825bbb904ceadb4e9cfe9098f80010ef40d258162d43d6"
    assert shard_fingerprint("digest", "codec", TokenizeSettings(), 5) == expected
    assert shard_fingerprint("digest", "codec", TokenizeSettings(remove_vocals=True), 5) == expected
    assert shard_fingerprint("digest", "codec", TokenizeSettings(), 5, (), "htdemucs@sha256:0") != expected


def test_tokenizing_without_vocals_stops_within_a_clip(
    codec: Codec, separator: Separator, tokens: UPath, tmp_path: Path, pack: Pack, make_wav: MakeWav
) -> None:
    archive = storage.as_path(pack(tmp_path / "batch_1.zip", [("long.wav", make_wav(seconds=20.0))]))
    polled: list[int] = []
    stop: Callable[[], bool] = lambda: polled.append(0) or len(polled) > 3  # type: ignore[func-returns-value] # noqa: E731
    with pytest.raises(Cancelled):
        Tokenizer(codec, tokens, separation=Separation(separator)).tokenize(archive, cancelled=stop)
    assert len(polled) == 4 and read_report(tokens, "batch_1") is None

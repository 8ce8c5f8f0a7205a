"""Content of a shard and of its report."""

from __future__ import annotations

import dataclasses
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.data.audio import resample
from musicgen_core.data.shard_codec import shard_codec
from musicgen_core.data.shards import read_report, shard_paths
from musicgen_core.tokenizing import Counts, Tokenizer
from tests.fixture_types import MakeWav, Members, Pack, RowsOf

CLIPS = ["audio/one.wav", "audio/two.WAV", "audio/three.wav"]
REJECTED = ["audio/broken.wav", "audio/short.wav"]


def names_in(folder: UPath) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_every_wav_is_a_row_or_a_rejection_in_the_archives_order(
    archive: UPath, codec: Codec, tokens: UPath, rows_of: RowsOf
) -> None:
    report = Tokenizer(codec, tokens).tokenize(archive)
    assert [row.clip for row in rows_of(tokens)] == CLIPS
    assert [entry.clip for entry in report.rejected] == REJECTED
    assert "not decodable" in report.rejected[0].reason and "less than one frame" in report.rejected[1].reason
    assert read_report(tokens, "batch_1") == report
    assert names_in(tokens) == ["batch_1.json", "batch_1.parquet"]


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", "broken", "silent", "other"]), max_size=6),
    kind=st.sampled_from(["zip", "tar.gz"]),
)
def test_every_wav_is_accounted_for_exactly_once(
    tmp_path_factory: pytest.TempPathFactory,
    pack: Pack,
    make_wav: MakeWav,
    codec: Codec,
    kinds: list[str],
    kind: str,
    rows_of: RowsOf,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    bytes_of = {"good": make_wav(seconds=0.05), "broken": b"none", "silent": make_wav(0, 0.05), "other": b"text"}
    names = [f"{index}.{'txt' if each == 'other' else 'wav'}" for index, each in enumerate(kinds)]
    members = [("a", b""), *zip(names, (bytes_of[each] for each in kinds), strict=True)]
    path = storage.as_path(pack(folder / "batch_1.zip", members, kind))
    report = Tokenizer(codec, storage.as_path(folder)).tokenize(path)
    clips = [row.clip for row in rows_of(storage.as_path(folder))]
    assert clips == [name for name, each in zip(names, kinds, strict=True) if each == "good"]
    assert [entry.clip for entry in report.rejected] == [
        name for name, each in zip(names, kinds, strict=True) if each in ("broken", "silent")
    ]


def test_a_clips_codes_are_those_of_encoding_it_alone(
    archive: UPath, codec: Codec, tokens: UPath, members: Members, rows_of: RowsOf
) -> None:
    Tokenizer(codec, tokens).tokenize(archive)
    data = dict(members)
    for row in rows_of(tokens):
        audio, rate = soundfile.read(io.BytesIO(data[row.clip]), dtype="float32", always_2d=True)
        samples = resample(audio.mean(axis=1), rate)
        codes = codec.encode(torch.from_numpy(samples)[None, None])[0]
        assert (row.codes == codes.numpy()).mean() >= 0.999
        assert row.codes.shape == (4, -(-len(samples) // 640))
        assert row.duration == len(audio) / rate


def test_the_report_summarises_the_archive(archive: UPath, codec: Codec, tokens: UPath) -> None:
    report = Tokenizer(codec, tokens).tokenize(archive)
    assert (report.archive, report.archive_bytes) == ("batch_1.zip", Path(str(archive)).stat().st_size)
    assert (report.clips, report.limited_to) == (3, None)
    assert report.audio_seconds == pytest.approx(0.3 + 0.2 + 0.25, abs=0.001)
    with storage.staged(shard_paths(tokens, "batch_1")[0]) as parquet:
        assert shard_codec(parquet) == (codec.identity, "debug")


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_gives_the_same_rows_as_a_zip(
    tmp_path: Path, pack: Pack, members: Members, archive: UPath, codec: Codec, kind: str, rows_of: RowsOf
) -> None:
    tar = storage.as_path(pack(tmp_path / "batch_2.zip", members, kind))
    tokens = storage.as_path(tmp_path / "tokens")
    reports = [Tokenizer(codec, tokens).tokenize(path) for path in (archive, tar)]
    for row, other in zip(rows_of(tokens), rows_of(tokens, "batch_2"), strict=True):
        assert dataclasses.replace(row, codes=other.codes) == other and np.array_equal(row.codes, other.codes)
    assert reports[0].rejected == reports[1].rejected


def test_a_remote_archive_gives_the_same_shard_as_a_local_one(
    archive: UPath, codec: Codec, tokens: UPath, bucket: UPath, tmp_path: Path
) -> None:
    storage.upload(Path(str(archive)), bucket / "batch_1.zip")
    remote = Tokenizer(codec, tokens).tokenize(bucket / "batch_1.zip")
    local = Tokenizer(codec, storage.as_path(tmp_path / "local")).tokenize(archive)
    assert dataclasses.replace(remote, origin=local.origin) == local


def test_progress_counts_every_clip(archive: UPath, codec: Codec, tokens: UPath) -> None:
    seen: list[Counts] = []
    Tokenizer(codec, tokens).tokenize(archive, on_clip=seen.append)
    assert seen == [Counts(*at, total=5) for at in ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2))]


def test_archives_can_be_tokenized_concurrently(
    tmp_path: Path, pack: Pack, make_wav: MakeWav, codec: Codec, rows_of: RowsOf
) -> None:
    archives = []
    for number in range(4):
        members = [(f"{n}.wav", make_wav(200 + 50 * n + number, 0.1 + 0.05 * n)) for n in range(8)]
        archives.append(storage.as_path(pack(tmp_path / f"batch_{number}.zip", members)))
    together, apart = storage.as_path(tmp_path / "together"), storage.as_path(tmp_path / "apart")
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(Tokenizer(codec, together).tokenize, archives))
    assert reports == [Tokenizer(codec, apart).tokenize(archive) for archive in archives]
    for archive in archives:
        for row, other in zip(rows_of(together, archive.stem), rows_of(apart, archive.stem), strict=True):
            assert row.clip == other.clip and (row.codes == other.codes).mean() >= 0.999

"""Near duplicates of earlier clips are removed from the shards, in all archives, and come back when they are wanted."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from upath import UPath

from musicgen_core import storage, tokenizing
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.captions import load_captions
from musicgen_core.data.duplicate_clips import repeated_clips
from musicgen_core.data.shards import Rejected, Row, ShardReport, read_report, read_rows, shard_paths
from musicgen_core.errors import TokensError
from musicgen_core.tokenizing import Tokenizer, exclude_duplicates
from tests.fixture_types import Pack

REPEATED = [
    [Rejected("c.wav", "near duplicate of batch_1: a.wav")],
    [Rejected("d.wav", "near duplicate of batch_1: b.wav")],
]
STEMS = ("batch_1", "batch_2")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_TOKENS_CACHE", str(tmp_path / "cache"))


def noise(seed: int) -> bytes:
    """Four seconds of noise, whose codes are as diverse as those of music."""
    buffer = io.BytesIO()
    audio = np.random.default_rng(seed).uniform(-0.9, 0.9, 128_000) * np.linspace(seed % 3, 1, 128_000)
    soundfile.write(buffer, audio.clip(-1, 1), 32_000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def archives(tmp_path: Path, pack: Pack) -> list[UPath]:
    first = [("a.wav", noise(0)), ("b.wav", noise(1)), ("c.wav", noise(0))]
    second = [("d.wav", noise(1)), ("e.wav", noise(2)), ("broken.wav", b"RIFF")]
    return [
        storage.as_path(pack(tmp_path / f"{stem}.zip", members))
        for stem, members in zip(STEMS, (first, second), strict=True)
    ]


@pytest.fixture
def tokenize(archives: list[UPath], counting: Any, tokens: UPath) -> Callable[..., list[ShardReport]]:
    def run(*exclude: Any) -> list[ShardReport]:
        tokenizer = Tokenizer(counting, tokens, TokenizeSettings(exclude=exclude))
        reports = [tokenizer.tokenize(archive) for archive in archives]
        if not exclude:
            return reports
        exclude_duplicates(tokens, counting.identity)
        return [found for stem in STEMS if (found := read_report(tokens, stem)) is not None]

    return run


def rows_of(tokens: UPath, stem: str) -> list[Row]:
    with storage.staged(shard_paths(tokens, stem)[0]) as local:
        return list(read_rows(local))


def content(tokens: UPath) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for stem in STEMS for path in shard_paths(tokens, stem)}


def test_near_duplicates_of_earlier_clips_become_rejections(
    tokenize: Callable[..., list[ShardReport]], tokens: UPath, counting: Any
) -> None:
    whole = tokenize()
    reports = tokenize("duplicate")
    assert [report.clips for report in reports] == [2, 1] and counting.encoded == 5
    assert [[each for each in report.rejected if "near" in each.reason] for report in reports] == REPEATED
    assert reports[1].rejected[0] == whole[1].rejected[0]  # the broken one
    assert [round(report.audio_seconds) for report in reports] == [8, 4]
    assert [[row.clip for row in rows_of(tokens, stem)] for stem in STEMS] == [["a.wav", "b.wav"], ["e.wav"]]
    assert all(a.fingerprint != b.fingerprint for a, b in zip(whole, reports, strict=True))

    before = content(tokens)
    assert tokenize("duplicate") == reports and content(tokens) == before
    assert counting.encoded == 5


def test_near_duplicates_come_back_without_the_exclusion(
    tokenize: Callable[..., list[ShardReport]], tokens: UPath, counting: Any
) -> None:
    whole, before = tokenize(), content(tokens)
    tokenize("duplicate")
    assert tokenize() == whole and content(tokens) == before
    assert counting.encoded == 10


def test_near_duplicates_come_back_when_the_shard_of_the_earlier_clip_is_deleted(
    tokenize: Callable[..., list[ShardReport]], archives: list[UPath], tokens: UPath, counting: Any
) -> None:
    tokenize("duplicate")
    for path in shard_paths(tokens, STEMS[0]):
        path.unlink()
    del archives[0]
    [report] = tokenize("duplicate")
    assert [row.clip for row in rows_of(tokens, STEMS[1])] == ["d.wav", "e.wav"]
    assert [each.clip for each in report.rejected] == ["broken.wav"] and counting.encoded == 7


def test_a_near_duplicate_takes_the_place_of_a_clip_that_is_left_out_later(
    archives: list[UPath], tokens: UPath, counting: Any, tmp_path: Path
) -> None:
    settings = TokenizeSettings(exclude=("speech", "duplicate"))
    metadata = storage.as_path(tmp_path / "metadata.jsonl")

    def tokenize(speech: float) -> list[list[str]]:
        metadata.write_text(f'{{"archive": "batch_1.zip", "path": "b.wav", "speech": {speech}}}\n')
        tokenizer = Tokenizer(counting, tokens, settings, load_captions(metadata, settings))
        for archive in archives:
            tokenizer.tokenize(archive)
        exclude_duplicates(tokens, counting.identity)
        return [[row.clip for row in rows_of(tokens, stem)] for stem in STEMS]

    assert tokenize(0.0) == [["a.wav", "b.wav"], ["e.wav"]]
    assert tokenize(0.9) == [["a.wav"], ["d.wav", "e.wav"]]
    assert tokenize(0.9) == [["a.wav"], ["d.wav", "e.wav"]] and counting.encoded == 7
    assert tokenize(0.0) == [["a.wav", "b.wav"], ["e.wav"]]


def test_shards_without_near_duplicates_stay_as_they_are(archives: list[UPath], counting: Any, tokens: UPath) -> None:
    settings = TokenizeSettings(exclude=("duplicate",))
    plain = Tokenizer(counting, tokens).tokenize(archives[1])
    before = shard_paths(tokens, STEMS[1])[0].read_bytes()
    exclude_duplicates(tokens, counting.identity)
    assert Tokenizer(counting, tokens, settings).tokenize(archives[1]) == plain
    assert shard_paths(tokens, STEMS[1])[0].read_bytes() == before


def test_a_kill_between_two_shards_leaves_nothing_half(
    tokenize: Callable[..., list[ShardReport]], tokens: UPath, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize()
    uploads = iter([True])
    upload = storage.upload

    def killed(source: Path, target: UPath) -> None:
        if not next(uploads, False):
            raise KeyboardInterrupt
        upload(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "upload", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize("duplicate")
    [lost] = [stem for stem in STEMS if read_report(tokens, stem) is None]
    counting.encoded = 0
    reports = tokenize("duplicate")
    assert [[each for each in report.rejected if "near" in each.reason] for report in reports] == REPEATED
    assert [len(rows_of(tokens, stem)) for stem in STEMS] == [2, 1]
    assert counting.encoded == {STEMS[0]: 3, STEMS[1]: 2}[lost]


def test_clips_that_another_job_has_removed_are_not_removed_twice(
    tokenize: Callable[..., list[ShardReport]], tokens: UPath, counting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize()

    def found_by_both(*arguments: Any, **more: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(tokenizing, "repeated_clips", repeated_clips)
            found = repeated_clips(*arguments, **more)
            exclude_duplicates(tokens, counting.identity)
        return found

    monkeypatch.setattr(tokenizing, "repeated_clips", found_by_both)
    with pytest.raises(TokensError, match=r"batch_1\.parquet changed while it was read"):
        exclude_duplicates(tokens, counting.identity)
    assert [[row.clip for row in rows_of(tokens, stem)] for stem in STEMS] == [["a.wav", "b.wav"], ["e.wav"]]


def test_shards_of_another_codec_are_ignored(
    tokenize: Callable[..., list[ShardReport]], tokens: UPath, tmp_path: Path
) -> None:
    tokenize()
    before = content(tokens)
    (tokens / "notes.parquet").write_bytes(b"of somebody else")
    exclude_duplicates(tokens, "sha256:another")
    assert content(tokens) == before

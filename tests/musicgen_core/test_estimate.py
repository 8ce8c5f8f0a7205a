from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import estimate as module
from musicgen_core import storage
from musicgen_core.codec import Codec, StartedBatch
from musicgen_core.data.archive import find_archives
from musicgen_core.data.shards import shard_paths
from musicgen_core.errors import ArchiveError
from musicgen_core.estimate import Estimate, estimate
from musicgen_core.melody import Excerpt
from musicgen_core.tokenizing import Tokenizer
from tests.fixture_types import MakeWav, Pack


class SlowCodec(Codec):
    """The debug codec, counting what it encodes and waiting before each batch."""

    def __init__(self, codec: Codec, wait_seconds: float = 0.0) -> None:
        self.__dict__.update(codec.__dict__)
        self.wait_seconds = wait_seconds
        self.encoded = 0

    def start(self, clips: Sequence[NDArray[np.float32]], rate: int, excerpts: Sequence[Excerpt] = ()) -> StartedBatch:
        self.encoded += len(clips)
        time.sleep(self.wait_seconds)
        return super().start(clips, rate, excerpts)


@pytest.fixture(autouse=True)
def scratch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of temporary files, with measurements limited to one repetition."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(module, "LEAST_SECONDS", 0.0)
    return folder


@pytest.fixture
def archives(tmp_path: Path, pack: Pack, make_wav: MakeWav) -> UPath:
    """Return six zips of five clips of 0.1 s each, the last with an additional member that isn't audio."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for number in range(6):
        members = [(f"{place}.wav", make_wav(220 + 50 * place + number, 0.1)) for place in range(5)]
        members += [("broken.wav", b"this is not audio")] if number == 5 else []
        pack(folder / f"batch_{number}.zip", members)
    return storage.as_path(folder)


def estimated(place: UPath, codec: Codec, clips: int = 100, workers: int = 2) -> Estimate:
    return estimate(find_archives(str(place)), lambda: codec, clips, workers)


# What it says


def test_totals_are_exact_and_the_rest_follows_from_the_sample(archives: UPath, codec: Codec) -> None:
    found = estimated(archives, codec, clips=10)
    assert (found.archives, found.clips, found.is_exact) == (6, 31, True)
    assert found.archive_bytes == sum(path.stat().st_size for path in archives.iterdir())
    assert (found.sampled_clips, found.sampled_archives, found.asked_clips) == (10, 4, 10)
    [rejected] = found.rejected
    assert rejected.clip == "broken.wav" and "not decodable" in rejected.reason
    assert found.audio_seconds == pytest.approx(31 * 9 / 10 * 0.1)
    assert found.audio_seconds_per_sec == pytest.approx(found.clips_per_sec * 9 / 10 * 0.1)
    assert found.encoding_hours == pytest.approx(31 / found.clips_per_sec / 3600)
    assert (found.download_bytes_per_sec, found.download_hours, found.scratch_bytes) == (None, 0, 0)
    assert (found.device, found.workers) == ("cpu", 2)


def test_a_sample_of_all_clips_gives_the_result_of_tokenizing(archives: UPath, codec: Codec, tmp_path: Path) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    archive = archives / "batch_5.zip"
    report = Tokenizer(codec, tokens).tokenize(archive)
    found = estimated(archive, codec)
    assert found.sampled_clips == found.clips == report.clips + len(report.rejected) == 6
    assert found.rejected == report.rejected
    assert found.audio_seconds == pytest.approx(report.audio_seconds)
    assert found.tokens_bytes == shard_paths(tokens, "batch_5")[0].stat().st_size


def test_the_speed_is_the_pipelines_without_warm_up(archives: UPath, codec: Codec) -> None:
    slow = SlowCodec(codec, wait_seconds=0.3)
    started = time.monotonic()
    found = estimated(archives, slow, clips=20, workers=1)
    took = time.monotonic() - started
    assert slow.encoded == 20 - len(found.rejected) + module.WARM_UP_CLIPS
    assert took > 5 * 0.3  # a batch of each of four archives, and that of the warm-up
    assert took - 0.3 > 20 / found.clips_per_sec >= 4 * 0.3


def test_time_and_price_add_up() -> None:
    found = Estimate(
        archives=2,
        archive_bytes=7_200_000,
        unreadable=(),
        clips=100,
        is_exact=True,
        asked_clips=10,
        sampled_clips=10,
        sampled_archives=2,
        rejected=(),
        audio_seconds=36_000.0,
        epoch_seconds=3_000.0,
        clips_per_sec=1.0,
        audio_seconds_per_sec=5.0,
        captioned_seconds_per_sec=None,
        download_bytes_per_sec=None,
        tokens_bytes=1,
        scratch_bytes=0,
        workers=1,
        device="cpu",
        gpu="",
    )
    assert (found.encoding_hours, found.hours_to_go, found.cost(1.5)) == (2.0, 2.0, 3.0)
    remote = dataclasses.replace(found, download_bytes_per_sec=2000.0)
    assert (remote.download_hours, remote.hours_to_go, remote.cost(1.5)) == (1.0, 3.0, 4.5)
    captioned = dataclasses.replace(remote, captioned_seconds_per_sec=10.0)  # downloads everything twice
    assert (captioned.captioning_hours, captioned.download_hours, captioned.hours_to_go) == (1.0, 2.0, 5.0)


def test_clips_of_tars_are_about_as_many_as_their_sizes_say(
    tmp_path: Path, pack: Pack, make_wav: MakeWav, codec: Codec
) -> None:
    for number in range(2):
        pack(tmp_path / f"{number}.tar", [(f"{place}.wav", make_wav(440, 1.0)) for place in range(15)], "tar")
    found = estimated(storage.as_path(tmp_path), codec, clips=10)
    assert (found.clips, found.is_exact) == (pytest.approx(30, abs=5), False)
    assert found.audio_seconds == pytest.approx(found.clips)
    whole = estimated(storage.as_path(tmp_path), codec, clips=32)
    assert (whole.clips, whole.is_exact, whole.sampled_clips) == (30, True, 30)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_remote_archives_are_downloaded_in_the_estimate_only(
    bucket: UPath, tmp_path: Path, pack: Pack, make_wav: MakeWav, codec: Codec, scratch: Path, kind: str
) -> None:
    for number in range(3):
        members = [(f"{place}.wav", make_wav(440, 0.1)) for place in range(4 + number)]
        storage.upload(pack(tmp_path / "packed", members, kind), bucket / f"{number}.{kind}")
    sizes = [path.stat().st_size for path in bucket.iterdir()]
    found = estimated(bucket, codec, workers=2)
    assert (found.clips, found.sampled_clips, found.archive_bytes) == (15, 15, sum(sizes))
    assert found.audio_seconds == pytest.approx(1.5)
    assert found.scratch_bytes == 2 * max(sizes)
    assert found.download_bytes_per_sec
    assert found.download_hours == pytest.approx(sum(sizes) / found.download_bytes_per_sec / 3600)
    assert len(list(bucket.iterdir())) == 3
    assert not list(scratch.iterdir())


# How it is made


def test_a_fast_sample_is_repeated_but_counted_once(
    archives: UPath, codec: Codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = estimated(archives, codec)
    counting, heard = SlowCodec(codec), []
    # By a clock of its own, on which 100 clips take a second however busy the machine is.
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: counting.encoded / 100))
    monkeypatch.setattr(module, "LEAST_SECONDS", 1.0)
    found = estimate(find_archives(str(archives)), lambda: counting, 100, 1, lambda: heard.append(1))
    assert 100 <= counting.encoded - module.WARM_UP_CLIPS < 100 + 2 * 20
    assert len(heard) == found.sampled_clips == once.sampled_clips == 21
    assert (found.rejected, found.tokens_bytes) == (once.rejected, once.tokens_bytes)
    assert found.audio_seconds == once.audio_seconds
    assert found.clips_per_sec == pytest.approx(100 * 21 / 20, rel=0.02)  # of 21, one is rejected unencoded


def test_nothing_is_left_behind_and_archives_stay_as_they_are(
    archives: UPath, codec: Codec, scratch: Path, tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in archives.iterdir()}
    estimated(archives, codec)
    assert {path.name: path.read_bytes() for path in archives.iterdir()} == before
    assert not list(scratch.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "scratch"]


def test_an_interruption_in_any_thread_ends_all_of_them_soon(
    archives: UPath, codec: Codec, monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    monkeypatch.setattr(module, "LEAST_SECONDS", 100.0)

    calls = count()

    def interrupt() -> None:
        if next(calls) == 12:
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        estimate(find_archives(str(archives)), lambda: codec, 100, 4, interrupt)
    assert time.monotonic() - started < 60
    assert not list(scratch.iterdir())


# What can be wrong


def test_unreadable_archives_are_left_out_and_reported(archives: UPath, codec: Codec) -> None:
    (archives / "batch_0.zip").write_bytes(b"PK, and no more of a zip")
    found = estimated(archives, codec, clips=4)
    assert (found.archives, found.clips) == (5, 26)
    assert "batch_0.zip" in found.unreadable[0] and len(found.unreadable) == 1


def test_the_model_is_loaded_only_for_readable_archives(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ArchiveError, match=r"a\.zip can't be read"):
        estimate([storage.as_path(tmp_path / "a.zip")], lambda: pytest.fail("loaded"))


def test_a_sample_of_rejected_clips_only_is_an_error(tmp_path: Path, pack: Pack, codec: Codec) -> None:
    pack(tmp_path / "a.zip", [(f"{number}.wav", b"this is not audio") for number in range(3)])
    with pytest.raises(ArchiveError, match=r"none of the 3 clips tried can be used; 0\.wav: not decodable"):
        estimated(storage.as_path(tmp_path), codec)

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect import flow

from musicgen_core import storage
from musicgen_core.data.shards import Rejected, ShardReport
from tasks import archives_log
from tasks.archives_log import TOKENIZING, ArchiveProgress, ArchivesLog, log_tokenizing
from tasks.artifacts import Artifacts
from tasks.progress import Update, duration, listening, report
from tests.musicgen_core.tracking.offline_files import Logged


class Recorder:
    """A stand-in for WandB that records logged values."""

    url = "https://wandb.test/run"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)


class Shown(Artifacts):
    """Records artifacts, without a server."""

    def __init__(self) -> None:
        self.rows: Sequence[Mapping[str, Any]] = []
        self.description = self.link = ""
        self.percent = 0.0

    def progress(self, key: str, done: int, total: int, description: str) -> None:
        self.percent = 100 * done / total

    def table(self, key: str, rows: Sequence[Mapping[str, Any]], description: str, link: str = "") -> None:
        self.rows, self.description, self.link = rows, description, link


def logged(
    stems: Sequence[str], recorder: Recorder | None = None, heard: list[Update] | None = None
) -> tuple[ArchivesLog, Shown]:
    shown = Shown()
    say = heard.append if heard is not None else lambda update: None
    return ArchivesLog(TOKENIZING, recorder or Recorder(), stems, say, shown), shown  # type: ignore[arg-type]


def shard(clips: int, rejected: int) -> ShardReport:
    return ShardReport("a.zip", 1, "f", "c", clips, 1.0, [Rejected("x.wav", "silent")] * rejected)


def test_each_archive_counts_once_however_often_it_ends() -> None:
    recorder = Recorder()
    log, _ = logged(["one", "two", "three"], recorder)
    log.hear(ArchiveProgress("one", 2, 1, 6))
    log.end("one", shard(5, 1))
    log.end("two", None, problem="broken")
    log.show()
    log.end("two", shard(7, 0))
    log.show()
    first, last = recorder.rows[-2:]
    assert first["tokenize/archives_failed"] == 1
    assert (last["tokenize/archives_succeeded"], last["tokenize/archives_failed"]) == (2, 0)
    assert [last[f"tokenize/{name}"] for name in ("clips", "clips_succeeded", "clips_failed")] == [13, 12, 1]
    assert last["tokenize/files_per_sec"] > 0
    assert last["tokenize/eta_seconds"] > 0


def test_archives_kept_from_earlier_runs_do_not_affect_the_speed() -> None:
    recorder = Recorder()
    log, _ = logged(["one", "two"], recorder)
    log.end("one", shard(1000, 0), cached=True)
    log.show()
    assert recorder.rows[-1]["tokenize/clips"] == 1000
    assert recorder.rows[-1]["tokenize/files_per_sec"] == 0
    assert "tokenize/eta_seconds" not in recorder.rows[-1]


def test_progress_of_tasks_is_summed_up_for_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives_log, "SAY_EVERY_SECONDS", 0.0)
    heard: list[Update] = []
    with listening(heard.append):
        log, _ = logged(["one", "two"], heard=heard)
        with listening(log.hear):
            report(ArchiveProgress("one", 0, 0, 4))
            report(ArchiveProgress("one", 3, 1, 4))
            report(Update("train", "run", 1, 2))
        log.end("one", shard(3, 1))
    assert [update.stage for update in heard] == ["tokenize", "tokenize", "tokenize", "train", "tokenize"]
    assert heard[2].text.startswith("3 clips, 1 rejected, ") and "clips/s" in heard[2].text
    assert [(update.done, update.total) for update in heard if update.stage == "tokenize"][-1] == (1, 2)


def test_the_table_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives_log, "SHOW_EVERY_SECONDS", 0.0)
    log, shown = logged(["one", "two"])
    log.hear(ArchiveProgress("one", 0, 0, 4))
    log.hear(ArchiveProgress("one", 2, 1, 4))
    whole, one, two = shown.rows
    assert (whole["archive"], whole["state"]) == ("all 2", "0 ended")
    assert [(row["archive"], row["state"], row["clips"], row["rejected"]) for row in (one, two)] == [
        ("one", "running", 2, 1),
        ("two", "waiting", 0, 0),
    ]
    assert one["clips/s"] > 0 and one["ETA"] and whole["clips/s"] > 0 and whole["ETA"]
    assert two["clips/s"] == two["ETA"] == ""
    assert shown.description.startswith("Tokenizing: 0 of 2 archives, 2 clips, 1 rejected")
    assert shown.link == "[WandB run](https://wandb.test/run)"


def test_archives_that_need_attention_come_first() -> None:
    stems = [f"archive_batch_{number:04}" for number in range(139)]
    log, shown = logged(stems)
    for stem in stems[:100]:
        log.end(stem, shard(10, 0), cached=stem < "archive_batch_0050")
    log.hear(ArchiveProgress(stems[101], 5, 0, 10))
    log.end(stems[70], None, problem="damaged")
    log.show()
    states = [row["state"] for row in shown.rows]
    assert states == ["100 ended", "failed", "running", *["waiting"] * 38, *["done"] * 49, *["kept"] * 50]
    assert shown.rows[0]["problem"] == "1 failed"
    assert [row["archive"] for row in shown.rows[1:3]] == [stems[70], stems[101]]
    assert shown.rows[1]["problem"] == "damaged"
    assert shown.percent == pytest.approx(100 * 100 / 139)


def test_without_task_progress_finished_archives_give_the_speed() -> None:
    """As on a Dask cluster."""
    log, shown = logged(["one", "two", "three"])
    log.end("one", shard(10, 0))
    log.show()
    assert shown.rows[0]["clips/s"] > 0


def test_the_log_gets_one_line_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        log, _ = logged(["one"])
        for clip in range(1000):
            log.hear(ArchiveProgress("one", clip, 0, 1000))
    assert [record.message for record in caplog.records] == ["Tokenizing: 0 of 1 archive, 0 clips"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (4e5, "111:06:40")]
)
def test_durations_read_as_clocks_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@flow
def tokenizing(tokens: str, stems: list[str], ends: int) -> None:
    """Log the end of the first archives, the last of which fails."""
    with log_tokenizing(tokens, stems) as log:
        for stem in stems[: ends - 1]:
            log.end(stem, shard(5, 1))
        log.end(stems[ends - 1], None, problem="damaged")


@pytest.mark.usefixtures("prefect_server")
def test_tokenizing_has_its_own_wandb_run_and_resumes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert "WANDB_API_KEY" not in os.environ
    for ends in (2, 3):
        tokenizing(str(tmp_path), ["one", "two", "three"], ends)
    logged = Logged(tmp_path)
    assert len(logged.parts) == 2
    assert len({run.run_id for run in logged.runs}) == 1 and {run.job_type for run in logged.runs} == {"tokenize"}
    assert logged.axes == {"tokenize/clips": "", "*": "tokenize/clips"}
    last = logged.history[-1]
    names = ("clips", "clips_succeeded", "clips_failed", "archives_succeeded", "archives_failed")
    assert [last[f"tokenize/{name}"] for name in names] == [12, 10, 2, 2, 1]
    assert last["tokenize/files_per_sec"] > 0
    assert any("tokenize/eta_seconds" in row for row in logged.history)
    assert logged.config["archives"] == 3


@pytest.mark.usefixtures("prefect_server")
def test_the_wandb_run_is_uploaded_to_remote_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_MODE")
    place = storage.as_path(f"memory://{uuid.uuid4().hex}")
    for _ in range(2):
        tokenizing(str(place), ["one", "two"], 2)
    files = [path for path in (place / "wandb").rglob("*") if path.suffix == ".wandb"]
    assert len(files) == 2 and len({path.name for path in files}) == 1  # two parts of one run
    assert all(b"tokenize/files_per_sec" in path.read_bytes() for path in files)


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_upload_of_wandb_does_not_fail_tokenizing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no permission")

    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setattr(storage, "upload_tree", fail)
    tokenizing(f"memory://{uuid.uuid4().hex}", ["one"], 1)
    assert any("no permission" in record.message for record in caplog.records)

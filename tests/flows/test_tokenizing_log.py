from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from musicgen_core.data.shards import Rejected, ShardReport
from tasks import tokenizing_log
from tasks.progress import Update, listening, report
from tasks.tokenizing_log import ArchiveProgress, TokenizingLog, duration, log_tokenizing

pytestmark = pytest.mark.usefixtures("prefect_server")


class Recorder:
    """Stands for WandB: keeps what is logged."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)


def shard(clips: int, rejected: int) -> ShardReport:
    return ShardReport("a.zip", 1, "f", "c", clips, 1.0, [Rejected("x.wav", "silent")] * rejected)


def test_each_archive_counts_once_however_often_it_ends() -> None:
    recorder = Recorder()
    log = TokenizingLog(recorder, ["one", "two", "three"], lambda update: None)  # type: ignore[arg-type]
    log.hear(ArchiveProgress("one", 2, 1, 6))
    log.end("one", shard(5, 1))
    log.end("two", None, problem="broken")
    log.show()
    log.end("two", shard(7, 0))
    log.show()
    first, last = recorder.rows
    assert first["tokenize/archives_failed"] == 1
    assert (last["tokenize/archives_done"], last["tokenize/archives_failed"]) == (2, 0)
    assert (last["tokenize/clips"], last["tokenize/clips_rejected"], last["global_step"]) == (12, 1, 13)
    assert last["tokenize/eta_seconds"] > 0


def test_archives_kept_from_before_say_nothing_of_the_speed() -> None:
    recorder = Recorder()
    log = TokenizingLog(recorder, ["one", "two"], lambda update: None)  # type: ignore[arg-type]
    log.end("one", shard(1000, 0), cached=True)
    log.show()
    assert recorder.rows[-1]["tokenize/clips"] == 1000
    assert recorder.rows[-1]["tokenize/clips_per_sec"] == 0
    assert "tokenize/eta_seconds" not in recorder.rows[-1]


def test_what_tasks_report_is_summed_up_for_who_listens_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing_log, "SAY_EVERY_SECONDS", 0.0)
    heard: list[Update] = []
    with listening(heard.append):
        log = TokenizingLog(Recorder(), ["one", "two"], heard.append)  # type: ignore[arg-type]
        with listening(log.hear):
            report(ArchiveProgress("one", 0, 0, 4))
            report(ArchiveProgress("one", 3, 1, 4))
            report(Update("train", "run", 1, 2))
        log.end("one", shard(3, 1))
    assert [update.stage for update in heard] == ["tokenize", "tokenize", "tokenize", "train", "tokenize"]
    assert heard[2].text.startswith("3 clips, 1 rejected, ") and "clips/s" in heard[2].text
    assert [(update.done, update.total) for update in heard if update.stage == "tokenize"][-1] == (1, 2)


def test_the_table_in_the_ui_is_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing_log, "SHOW_EVERY_SECONDS", 0.0)
    log = TokenizingLog(Recorder(), ["live-one", "live-two"], lambda update: None)  # type: ignore[arg-type]
    log.hear(ArchiveProgress("live-one", 0, 0, 4))
    log.hear(ArchiveProgress("live-one", 2, 1, 4))
    with get_client(sync_client=True) as client:
        key = ArtifactFilter(key=ArtifactFilterKey(any_=["tokenized-archives"]))
        tables = [json.loads(str(entry.data)) for entry in client.read_artifacts(artifact_filter=key)]
    [rows] = [rows for rows in tables if rows and rows[0]["archive"] == "live-one"]
    assert [(row["state"], row["clips"], row["rejected"]) for row in rows] == [("running", 2, 1), ("waiting", 0, 0)]
    assert rows[0]["clips/s"] > 0 and rows[0]["left"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (4e5, "111:06:40")]
)
def test_durations_read_as_clocks_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_tokenizing_has_a_wandb_run_of_its_own_beside_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert "WANDB_API_KEY" not in os.environ
    with log_tokenizing(str(tmp_path), ["one"]) as log:
        log.end("one", shard(5, 1))
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [file] = run.glob("*.wandb")
    content = file.read_bytes()
    assert b"tokenize/clips_per_sec" in content and b"tokenize" in content

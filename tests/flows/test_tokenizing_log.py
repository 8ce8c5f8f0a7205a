from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from musicgen_core.data.shards import Rejected, ShardReport
from tasks.tokenizing_log import TokenizingLog, log_tokenizing


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
    log = TokenizingLog(recorder, archives=3)  # type: ignore[arg-type]
    log.add("one", shard(5, 1))
    log.add("two", None)
    log.add("two", shard(7, 0))
    last = recorder.rows[-1]
    assert (last["tokenize/archives_done"], last["tokenize/archives_failed"]) == (2, 0)
    assert (last["tokenize/clips"], last["tokenize/clips_rejected"]) == (12, 1)
    assert last["tokenize/eta_seconds"] > 0
    assert recorder.rows[1]["tokenize/archives_failed"] == 1


def test_tokenizing_has_a_wandb_run_of_its_own_beside_the_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    assert "WANDB_API_KEY" not in os.environ
    with log_tokenizing(str(tmp_path), archives=1) as log:
        log.add("one", shard(5, 1))
    [run] = (tmp_path / "wandb").glob("offline-run-*")
    [file] = run.glob("*.wandb")
    content = file.read_bytes()
    assert b"tokenize/clips_per_sec" in content and b"tokenize" in content

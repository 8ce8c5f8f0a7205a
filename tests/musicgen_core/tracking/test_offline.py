"""Without a key: everything stays in the run's folder, whence `wandb sync` takes it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from musicgen_core import storage
from musicgen_core.tracking import AudioFile, Wandb, kept_run_id
from tests.musicgen_core.tracking.offline_files import Logged
from tests.musicgen_core.tracking.stand_in import StandIn

pytestmark = pytest.mark.usefixtures("without_key")


def run_in(folder: Path, **given: Any) -> Wandb:
    return Wandb(folder, "abcd1234", "a name", "train", {"lora_r": 8}, **given)


def log_all(run: Wandb, clip: AudioFile, adapter: Path, first_step: int = 1) -> None:
    for step in (first_step, first_step + 1):
        run.log({"global_step": step, "train/loss": 1 / step})
    run.log_audio("samples of epoch 1", {"global_step": 2, "epoch": 1}, {"samples/00": clip})
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    run.finish()


def test_without_a_key_the_run_is_kept_offline_under_the_run_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clip: AudioFile, adapter: Path
) -> None:
    with caplog.at_level("INFO", logger="musicgen_core.tracking"):
        log_all(run_in(tmp_path), clip, adapter)
    said = [record.message for record in caplog.records if record.name.startswith("musicgen_core.tracking")]
    assert said == [f"WandB runs offline: no WANDB_API_KEY is set. Later: wandb sync {tmp_path / 'wandb'}"]
    logged = Logged(tmp_path)
    assert logged.history[:2] == [{"global_step": 1, "train/loss": 1.0}, {"global_step": 2, "train/loss": 0.5}]
    assert logged.axes == {"global_step": "", "*": "global_step"}
    (run,) = logged.runs
    assert (run.run_id, run.display_name, run.job_type) == ("abcd1234", "a name", "train")
    assert logged.config == {"lora_r": 8} | {name: value for name, value in logged.config.items() if name == "_wandb"}
    assert logged.summary["train/loss"] == 0.5
    assert logged.system_metrics  # of the machine: nothing turned them off


def test_audio_is_logged_with_its_caption_over_the_axis_and_its_file_is_in_the_folder(
    tmp_path: Path, clip: AudioFile, adapter: Path
) -> None:
    log_all(run_in(tmp_path), clip, adapter)
    logged = Logged(tmp_path)
    (row,) = [row for row in logged.history if "samples/00" in row]
    assert (row["global_step"], row["epoch"], row["samples/00"]["caption"]) == (2, 1, "slow piano")
    assert row["samples/00"]["_type"] == "audio-file"
    assert logged.media(row, "samples/00") == clip.path.read_bytes()


def test_an_adapter_is_a_version_with_its_alias_and_stays_as_it_was(tmp_path: Path, adapter: Path) -> None:
    run = run_in(tmp_path)
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    adapter.write_bytes(b"better weights")
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    run.finish()
    (first, _, files), (second, about, better) = Logged(tmp_path).adapters
    assert "best" in first and "best" in second and about["base_model"] == "debug"
    assert (files, better) == ({"best_lora.pt": b"weights"}, {"best_lora.pt": b"better weights"})
    assert about["sha256"] == hashlib.sha256(b"better weights").hexdigest()


def test_what_was_logged_of_files_is_not_logged_again_by_a_resumed_run(
    tmp_path: Path, clip: AudioFile, adapter: Path
) -> None:
    log_all(run_in(tmp_path), clip, adapter)
    log_all(run_in(tmp_path), clip, adapter, first_step=3)
    logged = Logged(tmp_path)
    assert [run.run_id for run in logged.runs] == ["abcd1234"] * 2
    assert [row["global_step"] for row in logged.history if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["epoch"] for row in logged.history if "samples/00" in row] == [1]
    assert len(logged.adapters) == 1


def test_what_changed_is_logged_again_by_a_resumed_run(tmp_path: Path, clip: AudioFile, adapter: Path) -> None:
    log_all(run_in(tmp_path), clip, adapter)
    adapter.write_bytes(b"better weights")
    log_all(run_in(tmp_path), AudioFile(clip.path, "fast piano"), adapter, first_step=3)
    logged = Logged(tmp_path)
    captions = [row["samples/00"]["caption"] for row in logged.history if "samples/00" in row]
    assert captions == ["slow piano", "fast piano"]
    assert len(logged.adapters) == 2


def test_another_axis_and_an_id_that_is_kept_for_who_goes_on(tmp_path: Path) -> None:
    home = storage.as_path(tmp_path)
    new = kept_run_id(home)
    assert new != kept_run_id(home)  # nothing is kept until a run has begun
    run = Wandb(tmp_path, new, "a name", "tokenize", {}, axis="tokenize/clips")
    run.log({"tokenize/clips": 3})
    run.finish()
    assert kept_run_id(home) == new
    assert Logged(tmp_path).axes == {"tokenize/clips": "", "*": "tokenize/clips"}


def sync(folder: Path, below: Path, server: StandIn) -> None:
    """As a person does, with nothing but the command that was told."""
    environment = {**os.environ, "WANDB_CACHE_DIR": str(below / "cache")}
    command = [str(Path(sys.executable).with_name("wandb")), "sync", str(folder)]
    done = subprocess.run(command, cwd=below, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_whole_folder_is_synced_afterwards_with_both_parts_audio_and_adapter(
    tmp_path: Path, clip: AudioFile, adapter: Path, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        log_all(run_in(tmp_path / "run"), clip, adapter)
        log_all(run_in(tmp_path / "run"), clip, adapter, first_step=3)
    sync(tmp_path / "run" / "wandb", tmp_path, stand_in)
    rows = list(stand_in.history.values())
    assert [row["global_step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    (audio,) = [row["samples/00"]["path"] for row in rows if "samples/00" in row]
    assert stand_in.files[audio] == clip.path.read_bytes()
    assert stand_in.files["a1/best_lora.pt"] == b"weights"
    assert stand_in.runs == ["abcd1234"] and stand_in.config["lora_r"] == 8


def test_the_folder_of_a_remote_run_is_synced_where_it_was_copied_to(
    tmp_path: Path, clip: AudioFile, adapter: Path, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    stage, copied = tmp_path / "stage", tmp_path / "copied"
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        log_all(run_in(stage, home=storage.as_path("memory://somewhere/run")), clip, adapter)
    shutil.copytree(stage, copied)
    shutil.rmtree(stage)
    sync(Path("wandb"), copied, stand_in)
    assert stand_in.files["a1/best_lora.pt"] == b"weights"
    assert clip.path.read_bytes() in stand_in.files.values()


def test_disabled_it_is_not_even_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter: Path, clip: AudioFile
) -> None:
    before = set(tmp_path.iterdir())
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    log_all(run_in(tmp_path), clip, adapter)
    assert set(tmp_path.iterdir()) == before


def test_a_damaged_list_of_what_was_logged_is_begun_anew(tmp_path: Path, clip: AudioFile, adapter: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "logged.json").write_text('{"samples of')
    log_all(run_in(tmp_path), clip, adapter)
    assert set(json.loads((tmp_path / "wandb" / "logged.json").read_text())) == {"samples of epoch 1", "best"}

"""Without a key, all data stay in the run's folder, from which `wandb sync` uploads them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import wandb

from musicgen_core import storage
from musicgen_core.escaping import one_line
from musicgen_core.tracking import AudioFile, Wandb, kept_run_id
from tests.hostile import ALL, LONG, is_inert_terminal_text
from tests.musicgen_core.tracking.offline_files import Logged
from tests.musicgen_core.tracking.stand_in import StandIn
from tests.musicgen_core.tracking.syncing import sync
from tests.musicgen_core.tracking.waiting import wait_for

pytestmark = pytest.mark.usefixtures("without_key")


def run_in(folder: Path, **given: Any) -> Wandb:
    return Wandb(folder, "abcd1234", "a name", "train", {"lora_r": 8}, **given)


def log_all(run: Wandb, clip: AudioFile, adapter: Path, first_step: int = 1) -> None:
    for step in (first_step, first_step + 1):
        run.log({"global_step": step, "train/loss": 1 / step})
    run.log_audio("samples of epoch 1", {"global_step": 2, "epoch": 1}, {"samples/00": clip})
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    run.finish()


def test_without_a_key_the_run_is_offline_in_the_run_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clip: AudioFile, adapter: Path
) -> None:
    with caplog.at_level("INFO", logger="musicgen_core.tracking"):
        log_all(run_in(tmp_path), clip, adapter)
    said = [record.message for record in caplog.records if record.name.startswith("musicgen_core.tracking")]
    command = f"uv run --no-sync wandb sync --no-skip-online {tmp_path / 'wandb'}"
    assert said == [f"WandB runs offline: no WANDB_API_KEY is set. To upload it later:\n{command}"]
    logged = Logged(tmp_path)
    assert logged.history[:2] == [{"global_step": 1, "train/loss": 1.0}, {"global_step": 2, "train/loss": 0.5}]
    assert logged.axes == {"global_step": "", "*": "global_step"}
    (run,) = logged.runs
    assert (run.run_id, run.display_name, run.job_type) == ("abcd1234", "a name", "train")
    assert logged.config == {"lora_r": 8} | {name: value for name, value in logged.config.items() if name == "_wandb"}
    assert logged.summary["train/loss"] == 0.5
    assert logged.system_metrics  # of the machine: nothing turned them off


def test_a_hostile_caption_is_shortened_text(tmp_path: Path, clip: AudioFile, adapter: Path) -> None:
    log_all(run_in(tmp_path), replace(clip, caption=ALL + LONG), adapter)
    (row,) = [row for row in Logged(tmp_path).history if "samples/00" in row]
    assert row["samples/00"]["caption"] == one_line(ALL + LONG) and is_inert_terminal_text(one_line(ALL))


def test_audio_is_logged_with_caption_axis_and_file(tmp_path: Path, clip: AudioFile, adapter: Path) -> None:
    log_all(run_in(tmp_path), clip, adapter)
    logged = Logged(tmp_path)
    (row,) = [row for row in logged.history if "samples/00" in row]
    assert (row["global_step"], row["epoch"], row["samples/00"]["caption"]) == (2, 1, "slow piano")
    assert row["samples/00"]["_type"] == "audio-file"
    assert logged.media(row, "samples/00") == clip.path.read_bytes()


def test_an_adapter_is_an_immutable_version_with_its_alias(tmp_path: Path, adapter: Path) -> None:
    run = run_in(tmp_path)
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    adapter.write_bytes(b"better weights")
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    run.finish()
    (first, _, files), (second, about, better) = Logged(tmp_path).adapters
    assert "best" in first and "best" in second and about["base_model"] == "debug"
    assert (files, better) == ({"best_lora.pt": b"weights"}, {"best_lora.pt": b"better weights"})
    assert about["sha256"] == hashlib.sha256(b"better weights").hexdigest()


def test_a_resumed_run_does_not_log_files_again(tmp_path: Path, clip: AudioFile, adapter: Path) -> None:
    log_all(run_in(tmp_path), clip, adapter)
    log_all(run_in(tmp_path), clip, adapter, first_step=3)
    logged = Logged(tmp_path)
    assert [run.run_id for run in logged.runs] == ["abcd1234"] * 2
    assert [row["global_step"] for row in logged.history if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["epoch"] for row in logged.history if "samples/00" in row] == [1]
    assert len(logged.adapters) == 1


def test_a_resumed_run_logs_changed_files_again(tmp_path: Path, clip: AudioFile, adapter: Path) -> None:
    log_all(run_in(tmp_path), clip, adapter)
    adapter.write_bytes(b"better weights")
    log_all(run_in(tmp_path), AudioFile(clip.path, "fast piano"), adapter, first_step=3)
    logged = Logged(tmp_path)
    captions = [row["samples/00"]["caption"] for row in logged.history if "samples/00" in row]
    assert captions == ["slow piano", "fast piano"]
    assert len(logged.adapters) == 2


def test_the_axis_can_be_set_and_the_id_is_kept_for_resuming(tmp_path: Path) -> None:
    home = storage.as_path(tmp_path)
    new = kept_run_id(home)
    assert new != kept_run_id(home)  # nothing is kept until a run has begun
    run = Wandb(tmp_path, new, "a name", "tokenize", {}, axis="tokenize/clips")
    run.log({"tokenize/clips": 3})
    run.finish()
    assert kept_run_id(home) == new
    assert Logged(tmp_path).axes == {"tokenize/clips": "", "*": "tokenize/clips"}


def test_a_part_replaces_no_other_that_is_uploaded_already(tmp_path: Path) -> None:
    """WandB names folders by the second."""
    now, home = datetime.now(), storage.as_path(f"memory://{uuid.uuid4().hex}")
    taken = {f"offline-run-{now + timedelta(seconds=later):%Y%m%d_%H%M%S}-abcd1234" for later in range(6)}
    for name in taken:
        storage.write_text(home / "wandb" / name / "run-abcd1234.wandb", "of another part")
    run = run_in(tmp_path, home=home)
    run.log({"global_step": 1, "train/loss": 1.0})
    run.finish()
    (new,) = (tmp_path / "wandb").glob("offline-run-*")
    assert new.name not in taken


def test_syncing_uploads_all_parts_of_a_resumed_run(
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


def test_a_remote_runs_folder_is_synced_from_its_copy(
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


@pytest.mark.parametrize(
    "given",
    [
        {"WANDB_MODE": " "},
        {"WANDB_MODE": "onlin"},
        {"WANDB_PROJECT": "a/b"},
        {"WANDB_PROJECT": "x" * 200},
        {"WANDB_PROJECT": ""},
        {"WANDB_RESUME": "perhaps"},
    ],
    ids=str,
)
def test_odd_variables_leave_the_run_offline_not_out(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: AudioFile, adapter: Path
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    log_all(run_in(tmp_path), clip, adapter)
    assert Logged(tmp_path).history[:1] == [{"global_step": 1, "train/loss": 1.0}]
    assert all(os.environ.get(name, "") == value for name, value in given.items() if value.strip())


def test_wandb_disabled_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert not run_in(tmp_path).is_on


def test_disabled_it_is_not_even_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter: Path, clip: AudioFile
) -> None:
    before = set(tmp_path.iterdir())
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    log_all(run_in(tmp_path), clip, adapter)
    assert set(tmp_path.iterdir()) == before


def test_a_damaged_list_of_logged_files_restarts_empty(tmp_path: Path, clip: AudioFile, adapter: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "logged.json").write_text('{"samples of')
    log_all(run_in(tmp_path), clip, adapter)
    assert set(json.loads((tmp_path / "wandb" / "logged.json").read_text())) == {"samples of epoch 1", "best"}


def test_chosen_offline_mode_ignores_missing_and_malformed_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clip: AudioFile, adapter: Path
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4 + "\n")
    with caplog.at_level("INFO", logger="musicgen_core.tracking"):
        log_all(run_in(tmp_path), clip, adapter)
    said = [record.message for record in caplog.records if record.name.startswith("musicgen_core.tracking")]
    assert len(said) == 1 and said[0].startswith("WandB runs offline: WANDB_MODE says so. To upload it later:\n")
    assert len(Logged(tmp_path).adapters) == 1
    assert os.environ["WANDB_API_KEY"].endswith("\n"), "it is hidden from WandB alone"


def test_a_sample_that_cannot_be_copied_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, clip: AudioFile, adapter: Path
) -> None:
    """A mounted Drive may refuse a file's mode, which shutil.copy sets: ENOTSUP."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    run = run_in(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy", refuse)
        run.log_audio("samples of epoch 1", {"global_step": 1}, {"samples/00": clip})
        run.log_audio("samples of epoch 2", {"global_step": 2}, {"samples/00": clip})
        run.log({"global_step": 3, "train/loss": 0.5})
        run.finish()
    log_all(run_in(tmp_path), clip, adapter, first_step=4)  # which catches up on the samples
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("WandB misses the samples of epoch 1 (") and "not supported" in warning
    rows = Logged(tmp_path).history
    assert [row["global_step"] for row in rows if "train/loss" in row] == [3, 4, 5]
    assert len([row for row in rows if "samples/00" in row]) == 1


def test_a_run_that_failed_offline_can_restart_in_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: AudioFile, adapter: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(wandb.Run, "define_metric", fail)  # the run has begun by then
        run = run_in(tmp_path)
        run.finish()
    log_all(run_in(tmp_path), clip, adapter)
    assert len(Logged(tmp_path).adapters) == 1


def test_an_incomplete_offline_file_is_reported_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = run_in(tmp_path)
    run.log({"global_step": 1, "train/loss": 1.0})
    wait_for(lambda: (tmp_path / "wandb" / "run-id").exists())
    (log,) = tmp_path.glob("wandb/offline-run-*/logs/debug-internal.log")
    with log.open("a") as file:  # as wandb-core writes where the disk was full for a while
        file.write(json.dumps({"level": "ERROR", "msg": "writer: failed to save record: no space left"}) + "\n")
    run.finish()
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "lack a part of the run (writer: failed to save record: no space left)" in warning

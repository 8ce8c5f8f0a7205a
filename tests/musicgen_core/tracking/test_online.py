"""With a key, against a stand-in of WandB's server: received data, and behaviour on failures."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import wandb

from musicgen_core import storage
from musicgen_core.tracking import AudioFile, Wandb, stored_url, wandb_run
from tests.musicgen_core.tracking.offline_files import Logged
from tests.musicgen_core.tracking.stand_in import StandIn, running_stand_in
from tests.musicgen_core.tracking.syncing import sync
from tests.musicgen_core.tracking.waiting import STOP_AFTER_S, wait_for


def run_in(folder: Path) -> Wandb:
    return Wandb(folder, "abcd1234", "a name", "train", {"lora_r": 8, "model": "debug"})


def log_all(run: Wandb, clip: AudioFile, adapter: Path) -> None:
    """Log everything, and check that no call blocks."""
    started = time.monotonic()
    for step in (1, 2):
        run.log({"global_step": step, "train/loss": 1 / step})
    run.log_audio("samples of epoch 1", {"global_step": 2, "epoch": 1}, {"samples/00": clip})
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    assert time.monotonic() - started < STOP_AFTER_S / 2


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.name.startswith("musicgen_core")]
    return [record.message for record in records if record.levelno >= logging.WARNING]


def assert_all_is_offline(folder: Path, clip: AudioFile) -> None:
    logged = Logged(folder)
    assert [row["global_step"] for row in logged.history if "train/loss" in row] == [1, 2]
    (row,) = [row for row in logged.history if "samples/00" in row]
    assert logged.media(row, "samples/00") == clip.path.read_bytes()
    ((_, about, files),) = logged.adapters
    assert files == {"best_lora.pt": b"weights"} and about["base_model"] == "debug"
    assert {run.run_id for run in logged.runs} == {"abcd1234"}


def test_the_server_receives_history_config_audio_and_adapter(
    tmp_path: Path, stand_in: StandIn, clip: AudioFile, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(tmp_path)
    log_all(run, clip, adapter)
    run.finish()
    assert warnings(caplog) == []
    assert run.url == f"{stand_in.url}/someone/musicgen-flows/runs/abcd1234" == stored_url(storage.as_path(tmp_path))
    rows = [{name: row.get(name) for name in ("global_step", "train/loss")} for row in stand_in.history.values()]
    assert rows[:2] == [{"global_step": 1, "train/loss": 1.0}, {"global_step": 2, "train/loss": 0.5}]
    assert {name: stand_in.config[name] for name in ("lora_r", "model")} == {"lora_r": 8, "model": "debug"}
    metrics = json.dumps(stand_in.config["_wandb"]["m"])  # the result of define_metric
    assert '"1": "global_step"' in metrics and '"2": "*"' in metrics
    assert stand_in.system_metrics and stand_in.is_complete
    (audio,) = [row["samples/00"] for row in stand_in.history.values() if "samples/00" in row]
    assert audio["caption"] == "slow piano" and stand_in.files[audio["path"]] == clip.path.read_bytes()
    (artifact,) = stand_in.artifacts
    assert {alias["alias"] for alias in artifact["aliases"]} == {"best", "latest"}
    assert json.loads(artifact["metadata"])["base_model"] == "debug"
    assert stand_in.files["a1/best_lora.pt"] == b"weights"


def test_a_resumed_job_appends_to_the_same_run(
    tmp_path: Path, stand_in: StandIn, clip: AudioFile, adapter: Path
) -> None:
    for steps in ((1, 2), (3, 4)):
        run = run_in(tmp_path)
        for step in steps:
            run.log({"global_step": step, "train/loss": 1 / step})
        run.log_adapter(adapter, "best", {})
        run.finish()
    assert stand_in.runs == ["abcd1234"]
    assert [stand_in.history[line]["global_step"] for line in sorted(stand_in.history)] == [1, 2, 3, 4]
    assert len(stand_in.artifacts) == 1


def test_data_uploaded_online_are_not_synced_again(
    tmp_path: Path, stand_in: StandIn, clip: AudioFile, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_in(tmp_path)
    log_all(run, clip, adapter)
    run.finish()
    known = dict(stand_in.history)
    with monkeypatch.context() as patch:
        patch.delenv("WANDB_API_KEY")
        run = run_in(tmp_path)
        run.log({"global_step": 3, "train/loss": 0.25})
        run.finish()
    said = sync(tmp_path / "wandb", tmp_path, stand_in)
    assert "Syncing 1 run(s)" in said and "Skipped 1 synced run(s)" in said
    assert [row.get("global_step") for row in stand_in.history.values()][len(known) :] == [3]


@pytest.mark.usefixtures("impatient")
def test_a_key_revoked_during_the_run_is_reported_at_the_end(
    tmp_path: Path, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(tmp_path)
    run.log({"global_step": 1, "train/loss": 1.0})
    wait_for(lambda: run.url)
    reject_the_key(stand_in)
    run.log({"global_step": 2, "train/loss": 0.5})
    run.finish()
    (warning,) = warnings(caplog)
    assert "not got everything" in warning and "401" in warning
    stand_in.status = 200
    sync(tmp_path / "wandb", tmp_path, stand_in)
    assert [row["global_step"] for row in stand_in.history.values() if "train/loss" in row] == [1, 2]


def test_online_mode_without_a_key_falls_back_to_offline(
    tmp_path: Path,
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    clip: AudioFile,
    adapter: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr("wandb.sdk.lib.wbauth.prompt.prompt_and_save_api_key", lambda **_: pytest.fail("it asks"))
    run = run_in(tmp_path)
    log_all(run, clip, adapter)
    run.finish()
    assert_all_is_offline(tmp_path, clip)
    (warning,) = warnings(caplog)
    assert "there is no key" in warning and "continues offline" in warning


def test_online_mode_uses_the_key_of_wandb_login(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept = tmp_path / "netrc"
    kept.write_text(f"machine {stand_in.url.removeprefix('http://')}\n login user\n password {'0123456789' * 4}\n")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(kept))
    run = run_in(tmp_path / "run")
    run.log({"global_step": 1, "train/loss": 1.0})
    run.finish()
    assert warnings(caplog) == []
    assert [row["global_step"] for row in stand_in.history.values() if "train/loss" in row] == [1]


def test_a_malformed_key_costs_being_online_alone(
    tmp_path: Path,
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    clip: AudioFile,
    adapter: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789 " * 4)
    run = run_in(tmp_path)
    log_all(run, clip, adapter)
    run.finish()
    assert_all_is_offline(tmp_path, clip)
    assert len(warnings(caplog)) == 1


def reject_the_key(stand_in: StandIn) -> None:
    stand_in.status = 401


def refuse_connections(stand_in: StandIn) -> None:
    stand_in.stop()


def hang(stand_in: StandIn) -> None:
    stand_in.delay_s = 60.0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("break_it", [reject_the_key, refuse_connections, hang])
def test_a_failing_start_falls_back_to_offline_with_one_message(
    break_it: Callable[[StandIn], None],
    tmp_path: Path,
    stand_in: StandIn,
    clip: AudioFile,
    adapter: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    break_it(stand_in)
    started = time.monotonic()
    run = run_in(tmp_path)
    log_all(run, clip, adapter)
    run.finish()
    assert time.monotonic() - started < STOP_AFTER_S
    assert_all_is_offline(tmp_path, clip)
    (warning,) = warnings(caplog)
    assert "WANDB_API_KEY" in warning and f"wandb sync --no-skip-online {tmp_path / 'wandb'}" in warning
    assert bool(re.search(r"\b401\b", warning)) == (break_it is reject_the_key)  # a port may hold these digits
    assert run.url is None


def test_a_run_that_loses_its_server_is_complete_on_disk(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "2")
    run = run_in(tmp_path)
    run.log({"global_step": 1, "train/loss": 1.0})
    wait_for(lambda: run.url)
    stand_in.stop()
    run.log({"global_step": 2, "train/loss": 0.5})
    started = time.monotonic()
    run.finish()
    assert time.monotonic() - started < STOP_AFTER_S
    (warning,) = warnings(caplog)
    assert "not got everything" in warning and "wandb sync --no-skip-online" in warning
    (file,) = (tmp_path / "wandb").glob("run-*/run-abcd1234.wandb")
    assert file.read_bytes().count(b"train/loss") >= 2
    with running_stand_in() as back:
        sync(tmp_path / "wandb", tmp_path, back)
        assert [row["global_step"] for row in back.history.values() if "train/loss" in row] == [1, 2]


def service_processes() -> list[psutil.Process]:
    """Return WandB's services of this process, zombies included."""
    return [child for child in psutil.Process().children() if child.name() == "wandb-core"]


def test_a_run_whose_service_dies_continues_offline(
    tmp_path: Path, stand_in: StandIn, clip: AudioFile, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_in(tmp_path)
    wait_for(lambda: run.url)
    (service,) = service_processes()
    service.kill()
    wait_for(lambda: service.status() == psutil.STATUS_ZOMBIE)
    time.sleep(0.2)  # until the connection is seen to be closed
    log_all(run, clip, adapter)
    run.finish()
    assert_all_is_offline(tmp_path, clip)
    assert len(warnings(caplog)) == 1
    assert service_processes() == []


def test_an_interrupted_job_does_not_wait_for_a_wandb_that_hangs(
    tmp_path: Path,
    stand_in: StandIn,
    monkeypatch: pytest.MonkeyPatch,
    clip: AudioFile,
    adapter: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "60")
    monkeypatch.setattr(wandb_run, "INTERRUPTED_SECONDS", 0.5)
    hang(stand_in)
    run = run_in(tmp_path)
    log_all(run, clip, adapter)
    wait_for(service_processes)
    started = time.monotonic()
    run.finish(1, is_interrupted=True)
    assert time.monotonic() - started < STOP_AFTER_S  # WANDB_INIT_TIMEOUT is longer
    (warning,) = warnings(caplog)
    assert "left alone" in warning
    wait_for(lambda: not service_processes())


@pytest.mark.usefixtures("without_key")
def test_wandb_failing_even_offline_is_disabled_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: AudioFile, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(wandb, "init", fail)
    run = run_in(tmp_path)
    log_all(run, clip, adapter)
    run.finish()
    _, last = warnings(caplog)  # the first: it is tried without its variables
    assert last == "WandB failed and is left out from here on (no room); metrics.jsonl has everything"

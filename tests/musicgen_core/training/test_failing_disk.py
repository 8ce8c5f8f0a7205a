"""Files that can't be written: retries, waiting, reports, and that nothing is lost."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from upath import UPath

from musicgen_core import storage, tensor_files, tracking
from musicgen_core.errors import Cancelled, RunDirectoryError
from musicgen_core.model.lora import Adapter, AdapterConfig
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.files import background
from musicgen_core.training.files.background import Failures
from musicgen_core.training.files.checkpoint import Checkpoint, Progress, save_checkpoint
from musicgen_core.training.files.full_models import FullModels
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train

MakeRequest = Callable[..., TrainRequest]
KillAfter = Callable[[TrainRequest, int], None]
LeftIn = Callable[[str], Any]
pytestmark = pytest.mark.usefixtures("quick_retries")


@contextlib.contextmanager
def failing(is_failing: Callable[[UPath, int], bool]) -> Iterator[list[str]]:
    """Publishing a file fails like a full disk where `is_failing(target, how often it failed before)`."""
    whole, failed = storage.publish, list[str]()

    @contextlib.contextmanager
    def publish(target: UPath) -> Iterator[Path]:
        if is_failing(target, failed.count(target.name)):
            failed.append(target.name)
            raise OSError(28, "No space left on device")
        with whole(target) as path:
            yield path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "publish", publish)
        yield failed


def test_a_file_that_fails_once_is_written_the_second_time(request_for: MakeRequest) -> None:
    request = request_for(save_every_steps=2)
    with failing(lambda target, before: target.suffix == ".pt" and before == 0) as failed:
        result = train(request)
    assert {"latest.pt", "checkpoint_step_2.pt", "checkpoint_epoch_1.pt", "best_model.pt"} <= set(failed)
    assert result.warnings == () and result.steps == 6


def test_a_run_waits_for_room_and_loses_nothing(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture, left_in: LeftIn
) -> None:
    request = request_for(save_every_steps=2)
    is_full, steps, waits = True, list[int](), list[tuple[str | None, int]]()

    def wait(reason: str | None) -> None:
        waits.append((reason, len(steps)))

    def is_cancelled() -> bool:
        nonlocal is_full
        is_full = is_full and failed.count("latest_lora.pt") < 7  # it asks between the attempts
        return False

    with failing(lambda target, before: is_full and target.suffix == ".pt") as failed:
        result = train(
            request, lambda done, total: None, lambda row: steps.append(int(row["step"])), is_cancelled, on_wait=wait
        )
    assert result.steps == 6 and steps == [1, 2, 3, 4, 5, 6]
    (reason, held_after), (resumed, continued_after) = waits
    assert held_after == continued_after == 2 and resumed is None
    assert reason is not None and "latest_lora.pt could not be written (no space left on device" in reason
    assert "the newest state is in memory" in caplog.text
    assert any("latest_lora.pt" in text and text.endswith("nothing is lost") for text in result.warnings)
    left = left_in(request.run_dir)
    assert left.files >= {f"lora_weights/{name}.pt" for name in ("lora_epoch_1", "lora_epoch_2")}
    assert left.full_models == {"best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2"}
    assert left.rows[-1]["save_failures"] >= 1


def test_a_run_that_waits_can_be_cancelled_and_says_what_is_lost(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    request, waits = request_for(save_every_steps=2), list[str | None]()

    def is_full(target: UPath, before: int) -> bool:
        return target.suffix == ".pt" and (Path(request.run_dir) / "latest.pt").exists()

    with failing(is_full), pytest.raises(Cancelled, match="after step 3"):
        train(request, cancelled=lambda: bool(waits), on_wait=waits.append)
    assert "what was learned after step 2 could not be saved" in caplog.text
    assert train(request).resumed_from == 2


def test_a_run_interrupted_while_it_can_not_save_announces_that(request_for: MakeRequest) -> None:
    request, waits = request_for(), list[str | None]()

    def is_full(target: UPath, before: int) -> bool:
        return target.suffix == ".pt"

    with failing(is_full), pytest.raises(KeyboardInterrupt):
        train(request, on_step=_interrupt, on_wait=waits.append)
    (reason,) = waits
    assert reason and "could not be written" in reason


def _interrupt(row: dict[str, float]) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json"])
def test_a_resume_on_a_full_disk_waits_for_room(
    name: str,
    request_for: MakeRequest,
    killed_after: KillAfter,
    left_in: LeftIn,
    uninterrupted: tuple[TrainRequest, TrainResult],
    same_weights: Callable[..., None],
) -> None:
    request, waits = request_for(save_every_steps=2), list[str | None]()
    killed_after(request, 3)
    with failing(lambda target, before: target.name == name and not waits):
        result = train(request, on_wait=waits.append)
    reason, end = waits
    assert end is None and reason is not None and f"{name} could not be written (no space left" in reason
    assert result.resumed_from == 3 and any(text.endswith("nothing is lost") for text in result.warnings)
    left, expected = left_in(request.run_dir), left_in(uninterrupted[0].run_dir)
    assert left.files == expected.files and [row["step"] for row in left.rows] == [1, 2, 3, 4, 5, 6]
    same_weights(left.adapter(), expected.adapter())


def test_a_resume_waits_until_the_rest_of_the_run_fits(
    request_for: MakeRequest, killed_after: KillAfter, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, waits, free = request_for(), list[str | None](), [10]
    killed_after(request, 3)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=free[0]))

    def wait(reason: str | None) -> None:
        waits.append(reason)
        free[0] = 10**12

    result = train(request, on_wait=wait)
    reason, end = waits
    assert end is None and reason is not None and "where 10 bytes are free" in reason and "--keep-last 1" in reason
    assert result.steps == 6 and result.resumed_from == 3


def test_a_resume_that_waits_can_be_cancelled_and_changes_nothing(
    request_for: MakeRequest, killed_after: KillAfter, left_in: LeftIn
) -> None:
    request, waits = request_for(), list[str | None]()
    killed_after(request, 4)
    before = left_in(request.run_dir).contents
    with failing(lambda target, before: target.name == "config.json"), pytest.raises(Cancelled, match="after step 4"):
        train(request, cancelled=lambda: bool(waits), on_wait=waits.append)
    after = left_in(request.run_dir).contents
    assert {name: after[name] for name in before if name != "metrics.jsonl"} == {
        name: content for name, content in before.items() if name != "metrics.jsonl"
    }
    assert train(request).resumed_from == 4


def test_a_new_run_is_refused_where_nothing_can_be_written(request_for: MakeRequest) -> None:
    with failing(lambda target, before: target.name == "config.json"), pytest.raises(OSError, match="No space left"):
        train(request_for())


def test_the_last_steps_wait_too(request_for: MakeRequest) -> None:
    request, waits = request_for(), list[str | None]()
    is_last = False

    def on_step(row: dict[str, float]) -> None:
        nonlocal is_last
        is_last = row["step"] == 6

    with failing(lambda target, before: is_last and target.name == "latest.pt" and not waits):
        result = train(request, on_step=on_step, on_wait=waits.append)
    assert len(waits) == 2 and result.steps == 6 and train(request).ending == "complete before"


def test_metrics_that_a_full_disk_refused_are_written_with_later_ones(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, left_in: LeftIn
) -> None:
    whole, request = tracking.MetricsWriter.flush, request_for()

    def flush(writer: tracking.MetricsWriter) -> None:
        if not (Path(request.run_dir) / "room").exists():
            raise OSError(28, "No space left on device")
        whole(writer)

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 4:
            (Path(request.run_dir) / "room").touch()

    monkeypatch.setattr(tracking.MetricsWriter, "flush", flush)
    (warning,) = train(request, on_step=on_step).warnings
    assert "metrics.jsonl could not be written" in warning and "no space" in warning
    assert [row["step"] for row in left_in(request.run_dir).rows] == [1, 2, 3, 4, 5, 6]


def test_latest_waits_for_what_it_refers_to(request_for: MakeRequest, left_in: LeftIn) -> None:
    """best_lora.pt can't be written, so a restart must do that epoch again."""
    request, waits = request_for(), list[str | None]()
    with failing(lambda target, before: target.name == "best_lora.pt"), pytest.raises(Cancelled):
        train(request, cancelled=lambda: bool(waits), on_wait=waits.append)
    assert "latest.pt" not in left_in(request.run_dir).files
    assert train(request).resumed_from == 0
    assert "lora_weights/best_lora.pt" in left_in(request.run_dir).files


def test_a_full_model_that_can_not_be_written_is_reported_and_owed(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture, left_in: LeftIn
) -> None:
    request = request_for()
    with failing(lambda target, before: target.parent.name == "full_models" and "epoch_1" in target.name):
        result = train(request)
    assert any("checkpoint_epoch_1.pt" in warning and "no space" in warning for warning in result.warnings)
    assert "owed/checkpoint_step_3.pt" in left_in(request.run_dir).files
    again = train(request)  # not complete: something is owed
    assert again.resumed_from == 6 and again.warnings == ()
    assert "checkpoint_epoch_1" in left_in(request.run_dir).full_models
    assert train(request).warnings == ()


@pytest.mark.parametrize("name", ["final_model.pt", "final_lora.pt"])
def test_unwritable_final_files_end_the_run_and_the_next_run_writes_them(
    request_for: MakeRequest, name: str, left_in: LeftIn
) -> None:
    request = request_for()
    with (
        failing(lambda target, before: target.name == name),
        pytest.raises(RunDirectoryError, match=f"training is done.*{name}.*no space left"),
    ):
        train(request)
    assert train(request).resumed_from == 6
    assert {f"lora_weights/{name}", f"full_models/{name}"} & left_in(request.run_dir).files


def test_models_that_can_not_be_written_hold_a_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many epochs they are of, and however often they are tried."""
    files = RunDirectory(UPath(tmp_path), tmp_path)
    for step in range(1, 21):
        adapter = Adapter({}, AdapterConfig(2, 4.0).plain(), step, step, 1.0, "debug")
        owed = Checkpoint(adapter, {}, Progress(step=step), {}, [f"checkpoint_epoch_{step}"])
        save_checkpoint(owed, files.owed(step))
    tried, pauses = list[str](), list[float]()

    def write(checkpoint: Checkpoint, owed: UPath) -> None:
        tried.extend(checkpoint.owed)
        raise OSError(28, "No space left on device", str(owed))

    models = FullModels(files, BaseModel("debug", tmp_path), None, Failures())
    monkeypatch.setattr(models, "_write", write)
    monkeypatch.setattr(models.background, "_pause", pauses.append)
    for _ in range(3):
        models.write_owed()
        models.background.drain()
    models.background.close(5.0)
    assert pauses == list(background.BACKGROUND_DELAYS_S)
    twice = ["checkpoint_epoch_1", "checkpoint_epoch_2"]
    assert tried == [*2 * twice[:1], *twice, *twice, *twice]  # the first with its delays, and each pass two
    assert len(files.owed_checkpoints()) == 20


@pytest.mark.parametrize(("error", "is_kept"), [(OSError(5, "Input/output error"), True), (ValueError("cut"), False)])
def test_owed_models_outlive_a_disk_that_fails_to_read_them(
    error: Exception, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunDirectory(UPath(tmp_path), tmp_path)
    adapter = Adapter({}, AdapterConfig(2, 4.0).plain(), 1, 1, 1.0, "debug")
    save_checkpoint(Checkpoint(adapter, {}, Progress(step=1), {}, ["checkpoint_epoch_1"]), files.owed(1))

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(tensor_files, "load", load)
    models = FullModels(files, BaseModel("debug", tmp_path), None, Failures())
    models.write_owed()
    models.background.drain()
    models.background.close(5.0)
    assert files.owed(1).exists() == is_kept


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "musicgen-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(filler: Path, spare: int = 0) -> None:
    """Write until the disk is full but for so many bytes."""
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - spare)


def test_a_resume_waits_where_the_disk_is_really_full(
    request_for: MakeRequest, killed_after: KillAfter, small_disk: Path, left_in: LeftIn
) -> None:
    request = request_for(run_dir=str(small_disk / "run"), save_every_steps=2, full_models="none")
    filler, waits = small_disk / "filler", list[str | None]()
    killed_after(request, 3)
    fill(filler, spare=8192)  # for the lock

    def wait(reason: str | None) -> None:
        waits.append(reason)
        filler.unlink(missing_ok=True)

    result = train(request, on_wait=wait)
    reason, end = waits
    assert end is None and reason is not None and "are free" in reason
    assert (result.resumed_from, result.steps) == (3, 6)
    assert [row["step"] for row in left_in(request.run_dir).rows] == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_is_really_full_is_named_and_waited_for(
    request_for: MakeRequest, small_disk: Path, left_in: LeftIn
) -> None:
    request = request_for(run_dir=str(small_disk / "run"), save_every_steps=2, full_models="none")
    filler, waits = small_disk / "filler", list[str | None]()

    def fill_after(row: dict[str, float]) -> None:
        if row["step"] == 3:
            fill(filler)

    def wait(reason: str | None) -> None:
        waits.append(reason)
        filler.unlink(missing_ok=True)

    result = train(request, on_step=fill_after, on_wait=wait)
    reason, end = waits
    assert end is None and reason is not None and f"no space left on device: {request.run_dir}/" in reason
    assert "unexpected pos" not in " ".join(result.warnings)
    left = left_in(request.run_dir)
    assert [row["step"] for row in left.rows] == [1, 2, 3, 4, 5, 6]
    assert "latest.pt" in left.files and not any(name.endswith(".partial") for name in left.files)

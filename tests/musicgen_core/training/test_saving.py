"""What is kept of a training, where, and what happens when it can't be written."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.errors import ConfigError, RunDirectoryError
from musicgen_core.model.lora import load_adapter, merged_checkpoint
from musicgen_core.model.weights import find_model
from musicgen_core.training import background, full_models, saving
from musicgen_core.training.background import Abandoned
from musicgen_core.training.full_models import write_full_model
from musicgen_core.training.loop import Trainer
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train

MakeRequest = Callable[..., TrainRequest]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (saving, full_models):
        monkeypatch.setattr(module, "RETRY_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(background, "BACKGROUND_DELAYS_S", (0.0, 0.0))


def files_in(root: str | Path) -> set[str]:
    place = storage.as_path(root)
    return {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}


def full_models_in(root: str) -> set[str]:
    return {Path(name).stem for name in files_in(root) if name.startswith("full_models/")}


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


# How much is kept


@pytest.mark.parametrize(
    ("keep_last", "steps", "epochs"), [(1, {6}, {3}), (2, {4, 6}, {2, 3}), (9, {2, 4, 6}, {1, 2, 3})]
)
def test_the_newest_checkpoints_are_kept_and_everything_else(
    request_for: MakeRequest, keep_last: int, steps: set[int], epochs: set[int]
) -> None:
    request = request_for(num_epochs=3, max_steps=7, save_every_steps=2, keep_last=keep_last)
    train(request)
    files = files_in(request.run_dir)
    assert {name for name in files if "checkpoint_step" in name} == {f"checkpoint_step_{step}.pt" for step in steps}
    assert full_models_in(request.run_dir) == {
        "best_model",
        "final_model",
        *(f"checkpoint_epoch_{epoch}" for epoch in epochs),
    }
    assert files >= {"latest.pt", *(f"lora_weights/lora_epoch_{epoch}.pt" for epoch in (1, 2, 3))}


@pytest.mark.parametrize(("kept", "names"), [("best_and_final", {"best_model", "final_model"}), ("none", set())])
def test_full_models_are_written_as_asked(request_for: MakeRequest, kept: str, names: set[str]) -> None:
    request = request_for(full_models=kept)
    train(request)
    assert full_models_in(request.run_dir) == names
    assert "lora_weights/final_lora.pt" in files_in(request.run_dir)


def test_an_epochs_full_model_can_be_resumed_from_and_owes_nothing(request_for: MakeRequest) -> None:
    request = request_for()
    train(request)
    values = torch.load(Path(request.run_dir) / "full_models" / "checkpoint_epoch_1.pt", weights_only=True)
    assert {"xp.cfg", "best_state", "resume"} <= values.keys()
    assert values["resume"]["progress"]["step"] == 3 and values["resume"]["owed"] == []


# In the background


def test_training_goes_on_while_full_models_are_written(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_epoch_written, went_on = threading.Event(), threading.Event()
    whole = full_models.write_full_model

    def slow(values: dict[str, Any], target: UPath, stopping: threading.Event) -> None:
        if target.name == "checkpoint_epoch_1.pt":
            assert went_on.wait(30)
            first_epoch_written.set()
        whole(values, target, stopping)

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 5:
            assert not first_epoch_written.is_set()
            went_on.set()

    monkeypatch.setattr(full_models, "write_full_model", slow)
    result = train(request_for(), on_step=on_step)
    assert first_epoch_written.is_set() and result.warnings == ()


def test_a_full_model_that_takes_longer_than_all_epochs_keeps_no_step_waiting(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, whole = threading.Event(), full_models.write_full_model

    def slow(values: dict[str, Any], target: UPath, stopping: threading.Event) -> None:
        assert trained.wait(20)
        whole(values, target, stopping)

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 18:
            trained.set()

    monkeypatch.setattr(full_models, "write_full_model", slow)
    request = request_for(num_epochs=6)
    assert train(request, on_step=on_step).warnings == ()
    assert {f"checkpoint_epoch_{epoch}" for epoch in range(1, 7)} < full_models_in(request.run_dir)


def test_waiting_for_a_thread_that_was_told_to_stop_comes_to_an_end() -> None:
    thread, started = background.Background("test", background.Failures()), threading.Event()

    def job() -> None:
        started.set()
        assert thread.stopping.wait(10)

    thread.submit_unless_waiting("a job", job)
    assert started.wait(10)
    thread.abandon()
    deadline = time.monotonic() + 5

    def check() -> None:
        assert time.monotonic() < deadline

    thread.drain(check)


def test_the_best_between_two_epochs_is_saved_like_that_of_an_epoch(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation gets worse after step 2, the first of three in each epoch that validates."""
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"val/loss": next(losses)})
    request = request_for(validate_every_steps=2)
    result = train(request)
    best = load_adapter(storage.as_path(request.run_dir) / "lora_weights" / "best_lora.pt")
    assert (result.best_loss, best.global_step, best.epoch) == (1.0, 2, 1)
    expected = merged_checkpoint(find_model(request.model), best)["best_state"]
    written = torch.load(Path(request.run_dir) / "full_models" / "best_model.pt", weights_only=True)["best_state"]
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert not (Path(request.run_dir) / "owed").exists()


def test_a_training_without_a_best_ends_well_in_an_object_store(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, bucket: UPath
) -> None:
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"val/loss": float("nan")})
    assert train(request_for(run_dir=str(bucket / "run"))).best_loss is None


def test_metrics_that_a_full_disk_refused_are_written_with_later_ones(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
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
    assert "metrics.jsonl could not be written" in warning and "No space" in warning
    assert [row["step"] for row in tracking.read_metrics(Path(request.run_dir) / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_the_result_is_the_same_as_of_a_merge_while_nothing_else_runs(request_for: MakeRequest) -> None:
    """The merge of an epoch sees the adapter as it was, although training has gone on."""
    request = request_for()
    train(request)
    folder = storage.as_path(request.run_dir)
    adapter = load_adapter(folder / "lora_weights" / "lora_epoch_1.pt")
    expected = merged_checkpoint(find_model(request.model), adapter)["best_state"]
    written = torch.load(Path(str(folder)) / "full_models" / "checkpoint_epoch_1.pt", weights_only=True)["best_state"]
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_interrupted_full_models_are_abandoned_at_once_and_written_when_it_goes_on(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_for()
    saved_at = []

    def endless(values: dict[str, Any], target: UPath, stopping: threading.Event) -> None:
        with storage.publish(target) as path:
            path.write_bytes(b"half a model")
            assert stopping.wait(30)
            raise Abandoned

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 4:
            saved_at.append(time.monotonic())
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(full_models, "write_full_model", endless)
        with pytest.raises(KeyboardInterrupt):
            train(request, on_step=kill)
    assert time.monotonic() - saved_at[0] < 5
    left = files_in(request.run_dir)
    assert "owed/checkpoint_step_3.pt" in left and "latest.pt" in left
    assert not [name for name in left if "full_models" in name or name.endswith((".partial", ".lock"))]
    assert train(request).resumed_from == 4
    assert full_models_in(request.run_dir) == {"best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2"}
    assert not (Path(request.run_dir) / "owed").exists()


def test_a_write_that_is_told_to_stop_stops_between_two_pieces(tmp_path: Path) -> None:
    class StopsLater(threading.Event):
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 20

    target = storage.as_path(tmp_path / "model.pt")
    values = {f"w{i}": torch.ones(100_000) for i in range(50)}
    with pytest.raises(Abandoned):
        write_full_model(values, target, StopsLater())
    assert list(tmp_path.iterdir()) == []
    write_full_model(values, target, threading.Event())
    assert torch.equal(torch.load(Path(str(target)), weights_only=True)["w49"], values["w49"])


def test_half_written_files_of_a_killed_training_are_deleted(request_for: MakeRequest) -> None:
    request = request_for(max_steps=1)
    for name in ("full_models/best_model.pt.77-abc.partial", "latest.pt.77-abc.partial"):
        path = Path(request.run_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    train(request)
    assert not [name for name in files_in(request.run_dir) if name.endswith(".partial")]


# Failures


def test_a_file_that_fails_once_is_written_the_second_time(request_for: MakeRequest) -> None:
    request = request_for(save_every_steps=2)
    with failing(lambda target, before: target.suffix == ".pt" and before == 0) as failed:
        result = train(request)
    assert {"latest.pt", "checkpoint_step_2.pt", "checkpoint_epoch_1.pt", "best_model.pt"} <= set(failed)
    assert result.warnings == () and result.steps == 6


def test_a_disk_that_is_full_for_a_while_costs_no_training_and_loses_no_file_of_an_epoch(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for(save_every_steps=2)
    is_full = True

    def on_step(row: dict[str, float]) -> None:
        nonlocal is_full
        is_full = row["step"] < 5

    with failing(lambda target, before: is_full and target.suffix == ".pt") as failed:
        result = train(request, on_step=on_step)
    assert result.steps == 6 and "latest_lora.pt" in failed
    assert any("latest" in warning for warning in result.warnings) and "could not be written" in caplog.text
    assert files_in(request.run_dir) >= {f"lora_weights/{name}.pt" for name in ("lora_epoch_1", "lora_epoch_2")}
    assert full_models_in(request.run_dir) == {"best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2"}
    rows = tracking.read_metrics(Path(request.run_dir) / "metrics.jsonl")
    assert rows[-1]["save_failures"] >= 1


def test_latest_waits_for_what_it_refers_to(request_for: MakeRequest) -> None:
    """best_lora.pt can't be written, so a restart must do that epoch again."""
    request = request_for()

    class Gone(BaseException):
        pass

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 5:
            raise Gone

    with failing(lambda target, before: target.name == "best_lora.pt"), pytest.raises(Gone):
        train(request, on_step=kill)
    assert "latest.pt" not in files_in(request.run_dir)
    assert train(request).resumed_from == 0
    assert "lora_weights/best_lora.pt" in files_in(request.run_dir)


def test_a_full_model_that_can_not_be_written_is_reported_and_owed(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for()
    with failing(lambda target, before: target.parent.name == "full_models" and "epoch_1" in target.name):
        result = train(request)
    assert any("checkpoint_epoch_1.pt" in warning and "No space" in warning for warning in result.warnings)
    assert "owed/checkpoint_step_3.pt" in files_in(request.run_dir)
    again = train(request)  # not complete: something is owed
    assert again.resumed_from == 6 and again.warnings == ()
    assert "checkpoint_epoch_1" in full_models_in(request.run_dir)
    assert train(request).warnings == ()


@pytest.mark.parametrize("name", ["final_model.pt", "final_lora.pt"])
def test_final_files_that_can_not_be_written_end_the_training_and_running_again_writes_them(
    request_for: MakeRequest, name: str
) -> None:
    request = request_for()
    with (
        failing(lambda target, before: target.name == name),
        pytest.raises(RunDirectoryError, match=f"training is done, but .*{name}.*No space left"),
    ):
        train(request)
    assert train(request).resumed_from == 6
    assert f"lora_weights/{name}" in files_in(request.run_dir) or f"full_models/{name}" in files_in(request.run_dir)


# A second copy


def test_what_matters_is_copied_and_the_copy_can_be_gone_on_with(request_for: MakeRequest, bucket: UPath) -> None:
    request = request_for(copy_to=str(bucket / "copy"), num_epochs=1)
    train(request)
    copied = {"config.json", "metrics.jsonl", "loss.png", "latest.pt"}
    copied |= {f"lora_weights/{kind}_lora.pt" for kind in ("best", "final", "latest")}
    assert files_in(str(bucket / "copy")) == copied
    for name in copied:
        assert (bucket / "copy" / name).read_bytes() == (Path(request.run_dir) / name).read_bytes()
    shutil.rmtree(request.run_dir)
    result = train(request_for(run_dir=str(bucket / "copy"), num_epochs=2))
    assert (result.resumed_from, result.steps) == (3, 6)


def test_the_copy_is_kept_up_while_the_training_goes_on(request_for: MakeRequest, tmp_path: Path) -> None:
    copied = tmp_path / "copy" / "lora_weights" / "latest_lora.pt"

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 5:
            deadline = time.monotonic() + 20
            while not copied.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert load_adapter(storage.as_path(copied)).global_step == 3

    train(request_for(copy_to=str(tmp_path / "copy")), on_step=on_step)
    assert load_adapter(storage.as_path(copied)).global_step == 6


def test_a_copy_that_fails_is_reported_and_the_training_ends_well(request_for: MakeRequest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = train(request_for(copy_to=str(tmp_path / "file" / "copy"), max_steps=2))
    assert result.steps == 2
    assert any("copy" in warning for warning in result.warnings)


def test_a_copy_into_the_run_directory_is_refused(request_for: MakeRequest) -> None:
    request = request_for()
    with pytest.raises(ConfigError, match="lies in the run directory"):
        train(request_for(copy_to=f"{request.run_dir}/copy"))


# What changed


def test_the_settings_given_now_count_and_their_change_is_told(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    train(request_for(num_epochs=1, weight_decay=0.01))
    with caplog.at_level(logging.INFO):
        train(request_for(num_epochs=2, weight_decay=0.5, learning_rate=2e-3))
    for text in ("weight_decay was 0.01 and is 0.5", "num_epochs was 1 and is 2", "learning_rate was 0.001 and is"):
        assert text in caplog.text
    run_dir = Path(request_for().run_dir)
    (group,) = torch.load(run_dir / "latest.pt", weights_only=True)["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5
    assert json.loads((run_dir / "config.json").read_text())["weight_decay"] == 0.5


@pytest.mark.parametrize("hidden_in", [ImportError("initialization failed"), RuntimeError("unexpected pos")], ids=repr)
def test_an_interruption_that_compiled_code_turned_into_an_error_is_not_swallowed(hidden_in: Exception) -> None:
    """As pybind11 does to Prefect's TerminationSignal while it imports a module."""
    tried = 0

    def write() -> None:
        nonlocal tried
        tried += 1
        raise hidden_in from KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        background.attempt(write, (0.0, 0.0))
    assert tried == 1


def test_an_interruption_while_torch_writes_a_full_model_comes_out_as_itself(tmp_path: Path) -> None:
    class Interrupts(threading.Event):
        def is_set(self) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_full_model({"w": torch.ones(9)}, storage.as_path(tmp_path / "model.pt"), Interrupts())
    assert list(tmp_path.iterdir()) == []

"""Full models are written while the run continues, and writing them can be abandoned at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import raise_if_interrupted
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.lora import merged_checkpoint
from musicgen_core.model.weights import find_model
from musicgen_core.training.files import background, full_models
from musicgen_core.training.files.background import Abandoned
from musicgen_core.training.files.full_models import write_full_model
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest

pytestmark = pytest.mark.usefixtures("quick_retries")


def test_training_continues_while_full_models_are_written(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_epoch_written, went_on = threading.Event(), threading.Event()
    whole = full_models.write_full_model

    def slow(values: dict[str, Any], target: UPath, stopping: threading.Event) -> None:
        if target.name == "checkpoint_epoch_1.pt":
            assert went_on.wait(120)
            first_epoch_written.set()
        whole(values, target, stopping)

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 5:
            assert not first_epoch_written.is_set()
            went_on.set()

    monkeypatch.setattr(full_models, "write_full_model", slow)
    result = train(request_for(), on_step=on_step)
    assert first_epoch_written.is_set() and result.warnings == ()


def test_a_slow_full_model_blocks_no_step(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, left_in: LeftIn
) -> None:
    trained, whole = threading.Event(), full_models.write_full_model

    def slow(values: dict[str, Any], target: UPath, stopping: threading.Event) -> None:
        assert trained.wait(120)
        whole(values, target, stopping)

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 18:
            trained.set()

    monkeypatch.setattr(full_models, "write_full_model", slow)
    request = request_for(num_epochs=6)
    assert train(request, on_step=on_step).warnings == ()
    assert {f"checkpoint_epoch_{epoch}" for epoch in range(1, 7)} < left_in(request.run_dir).full_models


def test_waiting_for_an_abandoned_thread_ends() -> None:
    thread, started = background.Background("test", background.Failures()), threading.Event()

    def job() -> None:
        started.set()
        assert thread.stopping.wait(120)

    thread.submit_unless_waiting("a job", job)
    assert started.wait(120)
    thread.abandon()
    deadline = time.monotonic() + 60

    def check() -> None:
        assert time.monotonic() < deadline

    thread.drain(check)


def test_the_result_is_the_same_as_of_a_merge_while_nothing_else_runs(request_for: MakeRequest) -> None:
    """The merge of an epoch sees the adapter as it was, although training has gone on."""
    request = request_for()
    train(request)
    folder = storage.as_path(request.run_dir)
    adapter = load_adapter(folder / "lora_weights" / "lora_epoch_1.pt")
    expected = merged_checkpoint(find_model(request.model), adapter)["best_state"]
    written = torch.load(Path(str(folder)) / "full_models" / "checkpoint_epoch_1.pt", weights_only=True)["best_state"]
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_interrupted_full_models_are_written_after_resuming(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, left_in: LeftIn
) -> None:
    request = request_for()
    saved_at = []

    def endless(values: dict[str, Any], target: UPath, stopping: threading.Event) -> None:
        with storage.publish(target) as path:
            path.write_bytes(b"half a model")
            assert stopping.wait(200)
            raise Abandoned

    def kill(row: dict[str, float]) -> None:
        if row["step"] == 4:
            saved_at.append(time.monotonic())
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(full_models, "write_full_model", endless)
        with pytest.raises(KeyboardInterrupt):
            train(request, on_step=kill)
    assert time.monotonic() - saved_at[0] < 100
    left = left_in(request.run_dir)
    assert {"owed/checkpoint_step_3.pt", "latest.pt"} <= left.files
    assert not [name for name in left.files if "full_models" in name or name.endswith((".partial", ".lock"))]
    assert train(request).resumed_from == 4
    assert left.full_models == {"best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2"}
    assert not (Path(request.run_dir) / "owed").exists()


def test_an_abandoned_write_stops_between_two_chunks(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("hidden_in", [ImportError("initialization failed"), RuntimeError("unexpected pos")], ids=repr)
def test_an_interruption_inside_compiled_code_is_not_swallowed(hidden_in: Exception) -> None:
    """As pybind11 does to Prefect's TerminationSignal while it imports a module."""
    tried = 0

    def write() -> None:
        nonlocal tried
        tried += 1
        raise hidden_in from KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        background.retry(write, (0.0, 0.0))
    assert tried == 1


def test_an_interruption_while_torch_saves_a_model_is_raised_unchanged(tmp_path: Path) -> None:
    class Interrupts(threading.Event):
        def is_set(self) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_full_model({"w": torch.ones(9)}, storage.as_path(tmp_path / "model.pt"), Interrupts())
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_is_found_behind_circular_causes() -> None:
    error, other = RuntimeError("from compiled code"), OSError("on the way")
    error.__cause__, other.__cause__ = other, error
    raise_if_interrupted(error)
    other.__context__ = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        raise_if_interrupted(error)

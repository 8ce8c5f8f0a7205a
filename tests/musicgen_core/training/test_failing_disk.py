"""Files that can't be written: what is tried again, what waits, what is reported, and that nothing is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.errors import RunDirectoryError
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train

MakeRequest = Callable[..., TrainRequest]
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


def test_a_disk_that_is_full_for_a_while_costs_no_training_and_loses_no_file_of_an_epoch(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture, left_in: LeftIn
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
    left = left_in(request.run_dir)
    assert left.files >= {f"lora_weights/{name}.pt" for name in ("lora_epoch_1", "lora_epoch_2")}
    assert left.full_models == {"best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2"}
    assert left.rows[-1]["save_failures"] >= 1


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
    assert "metrics.jsonl could not be written" in warning and "No space" in warning
    assert [row["step"] for row in left_in(request.run_dir).rows] == [1, 2, 3, 4, 5, 6]


def test_latest_waits_for_what_it_refers_to(
    request_for: MakeRequest, killed_after: Callable[[TrainRequest, int], None], left_in: LeftIn
) -> None:
    """best_lora.pt can't be written, so a restart must do that epoch again."""
    request = request_for()
    with failing(lambda target, before: target.name == "best_lora.pt"):
        killed_after(request, 5)
    assert "latest.pt" not in left_in(request.run_dir).files
    assert train(request).resumed_from == 0
    assert "lora_weights/best_lora.pt" in left_in(request.run_dir).files


def test_a_full_model_that_can_not_be_written_is_reported_and_owed(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture, left_in: LeftIn
) -> None:
    request = request_for()
    with failing(lambda target, before: target.parent.name == "full_models" and "epoch_1" in target.name):
        result = train(request)
    assert any("checkpoint_epoch_1.pt" in warning and "No space" in warning for warning in result.warnings)
    assert "owed/checkpoint_step_3.pt" in left_in(request.run_dir).files
    again = train(request)  # not complete: something is owed
    assert again.resumed_from == 6 and again.warnings == ()
    assert "checkpoint_epoch_1" in left_in(request.run_dir).full_models
    assert train(request).warnings == ()


@pytest.mark.parametrize("name", ["final_model.pt", "final_lora.pt"])
def test_final_files_that_can_not_be_written_end_the_training_and_running_again_writes_them(
    request_for: MakeRequest, name: str, left_in: LeftIn
) -> None:
    request = request_for()
    with (
        failing(lambda target, before: target.name == name),
        pytest.raises(RunDirectoryError, match=f"training is done, but .*{name}.*No space left"),
    ):
        train(request)
    assert train(request).resumed_from == 6
    assert {f"lora_weights/{name}", f"full_models/{name}"} & left_in(request.run_dir).files

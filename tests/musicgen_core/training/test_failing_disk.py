"""Files that can't be written: retries, waiting, reports, and that nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from upath import UPath

from musicgen_core import tracking
from musicgen_core.errors import Cancelled
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest
from tests.musicgen_core.training.failing_writes import failing

pytestmark = pytest.mark.usefixtures("quick_retries")


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
    assert len(waits) == 1
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

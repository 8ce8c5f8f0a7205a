"""The result of an interrupted and resumed run is identical to that of an uninterrupted run, bit for bit."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.errors import Cancelled, RunDirectoryError
from musicgen_core.model.adapters import find_adapter
from musicgen_core.training.processes.distributed import World
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train
from tests.fixture_types import KillAfter, KilledIn, LeftIn, MakeRequest

NothingShows = Callable[[str], None]


@pytest.mark.parametrize("steps", [[2], [3], [1, 4, 5], [6]], ids=str)
def test_killed_after_a_step_and_started_again_nothing_shows(
    request_for: MakeRequest, killed_after: KillAfter, nothing_shows: NothingShows, steps: list[int]
) -> None:
    request = request_for(save_every_steps=2)
    for step in steps:
        killed_after(request, step)
    assert train(request).resumed_from == steps[-1]
    nothing_shows(request.run_dir)


def test_cancelled_at_every_step_and_started_again_nothing_shows(
    request_for: MakeRequest, nothing_shows: NothingShows
) -> None:
    request = request_for(save_every_steps=2)
    for step in range(1, 6):
        done: list[dict[str, float]] = []
        with pytest.raises(Cancelled, match=f"after step {step}"):
            train(request, on_step=done.append, cancelled=partial(bool, done))
    assert train(request).resumed_from == 5
    nothing_shows(request.run_dir)


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("save_adapter", 2),  # lora_epoch_1: the step checkpoint's latest_lora is the first
        ("save_adapter", 3),  # best_lora
        ("save_checkpoint", 2),  # checkpoint_step_2, after latest
        ("save_checkpoint", 3),  # owed, what the full models of the epoch are made from
        ("save_checkpoint", 4),  # latest, at the end of the epoch
        ("save_checkpoint", 9),  # the second epoch
    ],
)
def test_a_kill_during_an_epochs_end_changes_no_result(
    request_for: MakeRequest, killed_in: KilledIn, nothing_shows: NothingShows, function: str, call: int
) -> None:
    request = request_for(save_every_steps=2)
    with killed_in(function, call):
        train(request)
    train(request)
    nothing_shows(request.run_dir)


@pytest.mark.parametrize("call", range(3, 20, 4))
def test_a_kill_at_any_file_changes_no_result(
    request_for: MakeRequest,
    nothing_shows: NothingShows,
    monkeypatch: pytest.MonkeyPatch,
    killed: type[BaseException],
    call: int,
) -> None:
    """As after SIGKILL: from the `call`-th file on nothing is written any more, also not on the way out."""
    whole, calls = storage.publish, 0

    @contextlib.contextmanager
    def publish(target: Any) -> Iterator[Path]:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise killed
        with whole(target) as path:
            yield path

    request = request_for(save_every_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "publish", publish)
        with pytest.raises(killed):
            train(request)
    train(request)
    nothing_shows(request.run_dir)


def test_a_remote_training_resumes_too(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    tmp_path: Path,
    killed_after: KillAfter,
    left_in: LeftIn,
) -> None:
    request = request_for(run_dir=f"memory://{tmp_path.name}/run", save_every_steps=2)
    for step in (3, 4):
        killed_after(request, step)
    train(request)
    left, expected = left_in(request.run_dir), left_in(uninterrupted[0].run_dir)
    assert (left.files, left.untimed_rows) == (expected.files, expected.untimed_rows)


def test_with_latest_damaged_it_resumes_from_the_one_before(
    request_for: MakeRequest, killed_in: KilledIn, nothing_shows: NothingShows, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for(save_every_steps=2)
    with killed_in("save_checkpoint", 9):  # in step 6; step 4 is the one before
        train(request)
    latest, before = (Path(request.run_dir) / name for name in ("latest.pt", "checkpoint_step_6.pt"))
    for path in (latest, before):
        path.write_bytes(path.read_bytes()[:-100])
    assert train(request).resumed_from == 4
    assert "latest.pt can't be read" in caplog.text
    nothing_shows(request.run_dir)


def test_a_finished_run_rewrites_a_damaged_final_adapter(
    request_for: MakeRequest, nothing_shows: NothingShows, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_for(save_every_steps=2)
    train(request)
    final = Path(request.run_dir, "lora_weights", "final_lora.pt")
    final.write_bytes(final.read_bytes()[:1000])
    train(request)
    assert "is written again" in caplog.text
    nothing_shows(request.run_dir)


def test_a_partial_line_of_metrics_is_repaired(
    request_for: MakeRequest, killed_in: KilledIn, nothing_shows: NothingShows
) -> None:
    request = request_for(save_every_steps=2)
    with killed_in("save_checkpoint", 2):
        train(request)
    with open(Path(request.run_dir) / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "tra')
    train(request)
    nothing_shows(request.run_dir)


def test_more_epochs_continue_where_fewer_ended(request_for: MakeRequest, nothing_shows: NothingShows) -> None:
    train(request_for(num_epochs=1, save_every_steps=2))
    request = request_for(num_epochs=2, save_every_steps=2)
    assert train(request).resumed_from == 3
    nothing_shows(request.run_dir)


def test_a_finished_training_says_so_and_changes_nothing(
    uninterrupted: tuple[TrainRequest, TrainResult], left_in: LeftIn, caplog: pytest.LogCaptureFixture
) -> None:
    request, result = uninterrupted
    before = left_in(request.run_dir).contents
    starts: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO):
        again = train(request, on_start=lambda done, total: starts.append((done, total)))
    assert "is complete: 6 of 6 steps" in caplog.text
    assert starts == [(6, 6)]
    assert again == dataclasses.replace(result, resumed_from=6, ending="complete before")
    assert left_in(request.run_dir).contents == before


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_past_a_smaller_limit_says_that_nothing_is_trained(
    request_for: MakeRequest, killed_after: KillAfter, caplog: pytest.LogCaptureFixture, epochs: int
) -> None:
    if epochs == 1:  # complete at step 3
        train(request_for(num_epochs=1))
    else:  # interrupted at step 4, where no epoch ends
        killed_after(request_for(num_epochs=2), 4)
    step = epochs + 2
    starts: list[tuple[int, int]] = []
    past = train(request_for(max_steps=2), on_start=lambda *counts: starts.append(counts))
    assert f"is at step {step}, past the limit of 2 steps: nothing is trained" in caplog.text
    assert (starts, past.steps, past.ending) == ([(step, step)], step, "complete before")
    assert find_adapter(past.run_dir).exists()
    assert train(request_for(num_epochs=2)).resumed_from == step


# Several processes


@dataclasses.dataclass(frozen=True)
class SecondRank(World):
    """The second of two processes. `waits` happens while it waits for the first, which says what is in `reported`."""

    waits: Callable[[], object] = lambda: None
    reported: list[Any] = dataclasses.field(default_factory=list)

    def barrier(self) -> None:
        self.waits()

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast_object(self, value: Any) -> Any:
        return self.reported.pop(0)


def test_ranks_read_the_run_directory_after_the_main_one_locked_it(request_for: MakeRequest) -> None:
    """Another training may have gone on there until then."""
    train(request_for(num_epochs=1))
    request = request_for()
    world = SecondRank(1, 2, torch.device("cpu"), lambda: train(request), [6, True])
    assert train(request_for(batch_size=1), world=world).resumed_from == 6


def test_ranks_that_would_begin_at_different_steps_refuse(request_for: MakeRequest) -> None:
    request = request_for(num_epochs=1)
    train(request)
    world = SecondRank(1, 2, torch.device("cpu"), reported=[2])
    with pytest.raises(RunDirectoryError, match="rank 1 begins after step 3, the main one after step 2"):
        train(request, world=world)

"""A launcher that is cancelled, interrupted or killed: the workers save, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import musicgen_core
from musicgen_core.errors import Cancelled
from musicgen_core.training.processes import launch as module
from musicgen_core.training.processes import worker
from musicgen_core.training.processes.ipc import write_request
from tests.musicgen_core.training.launching import HERE, Launch, Processes, request_for, saved_step

pytestmark = pytest.mark.timeout(900)


@pytest.mark.slow
def test_cancelling_saves_and_leaves_no_process(toy: Launch, processes: Processes, tmp_path: Path) -> None:
    steps: list[float] = []
    with pytest.raises(Cancelled, match="cancelled after step"):
        toy("endless", on_step=lambda row: steps.append(row["step"]), cancelled=lambda: len(steps) >= 3)
    assert saved_step(tmp_path) == steps[-1] >= 3
    assert not processes.running()


@pytest.mark.slow
def test_cancelling_before_the_start_does_not_wait(
    toy: Launch, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 200.0)
    started = time.monotonic()
    with pytest.raises(Cancelled):
        toy("endless", cancelled=lambda: True)
    assert time.monotonic() - started < 100
    assert not processes.running()


@pytest.mark.slow
def test_workers_that_do_not_hear_are_killed(
    toy: Launch, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 2.0)
    steps: list[float] = []
    with pytest.raises(Cancelled, match=r"cancelled after step .* before it had saved"):
        toy("deaf", on_step=lambda row: steps.append(row["step"]), cancelled=lambda: bool(steps))
    assert processes.are_gone_within(120)


class TerminationSignal(BaseException):
    """As Prefect raises when a run is to end."""


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def terminate() -> None:
    raise TerminationSignal


@pytest.mark.slow
@pytest.mark.parametrize(("end", "error"), [(interrupt, KeyboardInterrupt), (terminate, TerminationSignal)])
def test_whatever_ends_the_launcher_saves_and_leaves_no_process(
    toy: Launch, processes: Processes, tmp_path: Path, end: Callable[[], None], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        toy("endless", on_step=lambda row: end())
    assert saved_step(tmp_path) >= 1
    assert not processes.running()


@pytest.mark.slow
def test_a_second_interrupt_kills_all_processes_at_once(
    toy: Launch, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 200.0)
    interrupted, waits = [], threading.Event()
    whole = module._Workers.stop

    def stop(workers: Any) -> None:
        waits.set()
        whole(workers)

    def interrupt_again() -> None:
        assert waits.wait(100)
        time.sleep(1.0)  # now it waits for the workers
        os.kill(os.getpid(), signal.SIGINT)

    def interrupt_twice(row: dict[str, float]) -> None:
        threading.Thread(target=interrupt_again).start()
        interrupted.append(time.monotonic())
        interrupt()

    monkeypatch.setattr(module._Workers, "stop", stop)
    with pytest.raises(KeyboardInterrupt):
        toy("deaf", on_step=interrupt_twice)
    assert time.monotonic() - interrupted[0] < 100
    assert processes.are_gone_within(120)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["endless", "deaf"])
def test_workers_end_by_themselves_when_the_launcher_is_killed(
    processes: Processes, tmp_path: Path, scenario: str
) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from musicgen_core.training.processes.ipc import read_request\n"
        "from musicgen_core.training.processes.launch import launch\n"
        "launch(read_request(Path(sys.argv[1])), 2, worker_module='toy_worker',"
        " on_step=lambda row: print(row, flush=True))"
    )
    write_request(request_for(scenario, tmp_path), tmp_path / "request.json")
    launcher = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "request.json")],
        env={**os.environ, "PYTHONPATH": f"{Path(musicgen_core.__file__).parents[1]}:{HERE}"},
        stdout=subprocess.PIPE,
    )
    assert launcher.stdout is not None and launcher.stdout.readline()
    assert len(processes.running("toy_worker")) >= 2
    launcher.kill()
    launcher.wait()
    assert processes.are_gone_within(worker.ORPHAN_GRACE + 120)
    assert (tmp_path / "saved").exists() == (scenario == "endless")

"""A toy for the launcher (toy_worker.py): its request, its progress, and the processes that a test started."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from musicgen_core.config import TrainSettings
from musicgen_core.training.request import TrainRequest, TrainResult

Launch = Callable[..., TrainResult]
HERE = Path(__file__).parent
MARK = "MUSICGEN_TEST_MARK"


class Processes:
    """Those that a test started, however indirectly: they inherit its mark."""

    def __init__(self, mark: str) -> None:
        self.mark = f"{MARK}={mark}".encode()

    def running(self, command: str = "") -> list[int]:
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdecimal()
            and self.mark in _read(folder / "environ").split(b"\0")
            and command.encode() in _read(folder / "cmdline")
        ]

    def are_gone_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self.running() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.running()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has just ended, or is somebody else's
        return b""


def request_for(scenario: str, run_dir: Path) -> TrainRequest:
    return TrainRequest(scenario, str(run_dir), "debug", TrainSettings(), device="cpu")


def saved_step(run_dir: Path) -> int:
    return int((run_dir / "saved").read_text())


def wait_for_steps(run_dir: Path, count: int) -> None:
    """Until the toy has done so many steps more."""
    steps = run_dir / "steps"
    enough = (steps.stat().st_size if steps.exists() else 0) + count
    deadline = time.monotonic() + 240
    while not steps.exists() or steps.stat().st_size < enough:
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.05)

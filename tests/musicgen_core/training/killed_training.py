"""Trainings in processes of their own that are killed. Run by test_killed.py: python killed_training.py PLAN.json

torch is imported once, and each training is a fork of this process: so there is time for many kills.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from musicgen_core.config import TrainSettings
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train


class Terminated(BaseException):
    """Like Prefect's TerminationSignal."""


def start(request: TrainRequest, step_seconds: float) -> tuple[int, int]:
    """Train in a fork → its process id, and a pipe that says a byte when the training begins."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading

    def terminate(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    code = 1
    try:
        train(
            request,
            on_start=lambda done, total: os.close(writing),
            on_step=lambda row: time.sleep(step_seconds),
        )
        code = 0
    except Terminated:
        code = 3
    finally:
        os._exit(code)


def wait_for_start(reading: int) -> None:
    os.read(reading, 1)  # comes back at the close
    os.close(reading)


def main(plan: dict[str, Any]) -> None:
    rng = random.Random(plan["seed"])
    request = TrainRequest(**{**plan["request"], "settings": TrainSettings(**plan["request"]["settings"])})
    kills, terminations = 0, []
    while True:
        pid, reading = start(request, plan["step_seconds"])
        early = rng.random() < 0.15
        if not early:
            wait_for_start(reading)
        number = signal.SIGTERM if plan["terms"] and rng.random() < 0.3 and not early else signal.SIGKILL
        left = rng.uniform(0, plan["life_seconds"]) if kills < plan["kills"] else float("inf")
        deadline = time.monotonic() + left
        status = None
        while status is None and time.monotonic() < deadline:
            done, result = os.waitpid(pid, os.WNOHANG)
            status = result if done else None
            time.sleep(0.002)
        if status is None:
            told = time.monotonic()
            os.kill(pid, number)
            _, status = os.waitpid(pid, 0)
            if number == signal.SIGTERM and status:
                terminations.append(time.monotonic() - told)
            kills += 1
        elif status:
            raise SystemExit(f"the training failed with {status}")
        if not status:
            break
    print(json.dumps({"kills": kills, "terminations": terminations}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

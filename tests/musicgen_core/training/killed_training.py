"""Runs in processes of their own that are killed. Started by test_killed.py: python killed_training.py PLAN.json

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
    """Train in a fork → its process id, and a pipe that gets a byte when the training begins and after each step."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading

    def terminate(*_: object) -> None:
        raise Terminated

    def say(*_: object) -> None:
        os.write(writing, b".")

    def say_step(*_: object) -> None:
        say()
        time.sleep(step_seconds)

    os.close(reading)
    signal.signal(signal.SIGTERM, terminate)
    code = 1
    try:
        train(request, on_start=say, on_step=say_step)
        code = 0
    except Terminated:
        code = 3
    finally:
        os._exit(code)


def live(reading: int, rng: random.Random, plan: dict[str, Any], early: bool) -> None:
    """Wait as long as a training may live. In steps, not in seconds: so a fast machine isn't done before the kills."""
    if not early:
        for _ in range(1 + rng.randint(0, plan["life_steps"])):
            os.read(reading, 1)  # comes back at the end of the training, too
    time.sleep(rng.uniform(0, plan["early_seconds"] if early else plan["step_seconds"]))


def main(plan: dict[str, Any]) -> None:
    rng = random.Random(plan["seed"])
    request = TrainRequest(**{**plan["request"], "settings": TrainSettings(**plan["request"]["settings"])})
    kills, terminations, status = 0, [], 1
    while status:
        pid, reading = start(request, plan["step_seconds"])
        done = 0
        if kills < plan["kills"]:
            early = rng.random() < 0.15
            number = signal.SIGTERM if plan["terms"] and rng.random() < 0.3 and not early else signal.SIGKILL
            live(reading, rng, plan, early)
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                reported = time.monotonic()
                os.kill(pid, number)
                _, status = os.waitpid(pid, 0)
                if number == signal.SIGTERM and status:
                    terminations.append(time.monotonic() - reported)
                kills += 1
        else:
            _, status = os.waitpid(pid, 0)
            done = pid
        os.close(reading)
        if done and status:
            raise SystemExit(f"the training failed with {status}")
    print(json.dumps({"kills": kills, "terminations": terminations}))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))

"""A server and a worker that can be stopped and restarted, and training runs there."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import torch
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun

from deployments.environment import ROOT, is_healthy
from tests.run_directories import saved_step, steps

STEPS = 45
KILL_AFTER = 8
TRAINING = {
    "model": "debug",
    "device": "cpu",
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "segment_seconds": 1.0,
    "num_epochs": STEPS,
    "max_steps": STEPS,
    "save_every_steps": STEPS,
    "save_every_minutes": 0.05,
    "full_models": "none",
}


@dataclass
class RestartableSite:
    """A server and a worker, which can be stopped and restarted, and the training runs there."""

    folder: Path
    port: int
    tokens: Path
    client: SyncPrefectClient = field(init=False)
    server: subprocess.Popen[bytes] = field(init=False)
    worker: subprocess.Popen[bytes] = field(init=False)
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start_server(self) -> None:
        self.server = self._start("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        wait(lambda: is_healthy(self.api), "the server")

    def start_worker(self) -> None:
        self.worker = self._start(
            "worker", "start", "--pool", "gpu", "--type", "process", "--work-queue", "default", "--limit", "1"
        )

    def replace_worker(self) -> None:
        """Start another worker, as a service manager would."""
        self.worker.wait(timeout=60)
        self.start_worker()

    def stop(self) -> None:
        """Stop everything that was started here, whoever its parent is by now."""
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT_HOME") == str(self.folder / "prefect"):
                    process.kill()
            except psutil.Error:
                continue

    def _start(self, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{command[0]}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", *command], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def train(self, name: str) -> Training:
        return self._run("train-lora", name, tokens=str(self.tokens))

    def finetune(self, name: str, archives: Path) -> Training:
        """Its training is that of `train`, as its shards have the same codes."""
        folder = self.folder / name
        places = {"archives": archives, "tokens": folder / "tokens", "output": folder / "music"}
        given = {place: str(path) for place, path in places.items()}
        return self._run("finetune", name, **given, captions="none", prompts=["calm strings"], duration=0.2)

    def _run(self, flow: str, name: str, **parameters: Any) -> Training:
        if self.worker.poll() is not None:  # an earlier test failed half-way
            self.start_worker()
        deployment = self.client.read_deployment_by_name(f"{flow}/{flow}")
        directory = self.folder / "runs" / name
        run = self.client.create_flow_run_from_deployment(
            deployment.id, parameters={**TRAINING, "run_dir": str(directory), **parameters}
        )
        return Training(self, run, directory)


@dataclass
class Training:
    site: RestartableSite
    created: FlowRun
    directory: Path

    @property
    def run(self) -> FlowRun:
        return self.site.client.read_flow_run(self.created.id)

    def state(self) -> str:
        state = self.run.state
        assert state is not None
        return str(state.name)

    def history(self) -> list[str]:
        """Return the names of the run's past states, without those of waiting for a process.

        A busy server may carry out an automation's action twice (it can't note that it has): that is one AwaitingRetry.
        """
        states = sorted(self.site.client.read_flow_run_states(self.created.id), key=lambda state: state.timestamp)
        names = [str(state.name) for state in states if state.name not in ("Scheduled", "Pending", "Late")]
        return [name for before, name in pairwise(["", *names]) if not before == name == "AwaitingRetry"]

    def process(self) -> psutil.Process:
        """Return the process of the flow, which may still be starting."""
        found = [
            process
            for process in psutil.process_iter()
            if environment_of(process).get("PREFECT__FLOW_RUN_ID") == str(self.created.id)
        ]
        return found[0]

    def steps(self) -> list[int]:
        return steps(self.directory)

    def saved_step(self) -> int:
        return saved_step(self.directory)

    def wait_until(self, *names: str) -> None:
        """Wait for one of these states, which may have ended already."""
        wait(lambda: not set(names).isdisjoint(self.history()), f"{names}")

    def wait_for_steps(self) -> None:
        wait(lambda: len(self.steps()) >= KILL_AFTER, f"{KILL_AFTER} steps; {self.history()}")

    def redone(self) -> str:
        """Return the work that must be repeated after the processes have ended."""
        done = max(self.steps(), default=0)
        return f"nothing; {max(0, done - self.saved_step())} of {done} steps done again"

    def adapter(self) -> dict[str, torch.Tensor]:
        values = torch.load(self.directory / "lora_weights" / "final_lora.pt", weights_only=True)
        assert values["global_step"] == STEPS
        lora: dict[str, torch.Tensor] = values["lora"]
        return lora


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        environment: dict[str, str] = process.environ()
        return environment
    except psutil.Error:
        return {}


def wait(holds: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)

"""torchrun started by a person, on one machine and on several."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import musicgen_core
from musicgen_core.training.processes import worker
from musicgen_core.training.processes.ipc import write_request
from tests.musicgen_core.training.launching import HERE, Processes, request_for, saved_step, wait_for_steps

pytestmark = pytest.mark.timeout(900)


def start_by_hand(tmp_path: Path, processes: int, *options: str) -> subprocess.Popen[str]:
    """torchrun as a person starts it, until its first worker trains."""
    write_request(request_for("endless", tmp_path), tmp_path / "request.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *options]
    command += ["--rdzv-backend", "c10d", "--rdzv-id", "by-hand"]
    command += ["-m", "toy_worker", str(tmp_path / "request.json")]
    environment = {**os.environ, "PYTHONPATH": f"{Path(musicgen_core.__file__).parents[1]}:{HERE}"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(line: str, torchrun: subprocess.Popen[str]) -> None:
    assert torchrun.stderr is not None
    next(said for said in torchrun.stderr if line in said)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_workers_of_a_manual_torchrun_save_when_it_is_stopped(
    processes: Processes, tmp_path: Path, chosen: signal.Signals
) -> None:
    torchrun = start_by_hand(tmp_path, 2, "--nnodes", "1", "--rdzv-endpoint", "localhost:0")
    wait_for("rank 0 warns", torchrun)
    time.sleep(3)
    wait_for_steps(tmp_path, 4)  # without stdin there is no lifeline, and they go on
    assert torchrun.poll() is None
    torchrun.send_signal(chosen)
    torchrun.communicate(timeout=240)
    assert processes.are_gone_within(worker.ORPHAN_GRACE + 120)
    assert saved_step(tmp_path) > 3


@pytest.mark.slow
def test_machines_train_together_and_ending_one_saves_and_ends_all(processes: Processes, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"localhost:{free.getsockname()[1]}"
    machines = [start_by_hand(tmp_path, 1, "--nnodes", "2", "--rdzv-endpoint", place) for _ in range(2)]
    for machine in machines:
        wait_for("warns", machine)
    wait_for_steps(tmp_path, 4)
    machines[1].terminate()
    for machine in machines:
        machine.communicate(timeout=240)
    assert saved_step(tmp_path) > 3
    assert processes.are_gone_within(120)

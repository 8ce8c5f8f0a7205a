"""`python -m deployments.team.worker QUEUE:GPU`: what the unit musicgen-worker@ runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from deployments.environment import prepare
from deployments.processes import end_runs
from deployments.registering import POOL

RUN_SECONDS = 100
"""How long a run may take to save and to tell the server; the unit's TimeoutStopSec is longer."""


def main(name: str) -> int:
    prepare()
    arguments, added = command(name, socket.gethostname())
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _interrupt)
    worker = subprocess.Popen([sys.executable, "-m", "prefect", *arguments], env={**os.environ, **added})
    try:
        return worker.wait()
    except KeyboardInterrupt:
        for stop in (signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, signal.SIG_IGN)
        end_runs([worker], RUN_SECONDS)
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGCONT)
        worker.wait()
        return 0


def command(name: str, host: str) -> tuple[list[str], dict[str, str]]:
    """Prefect's command for a worker, and what it needs in the environment.

    Args:
        name: `QUEUE:GPU`, or `GPU` alone for all queues. GPU: a number, several joined by `-`, or `none`.
        host: the machine, which tells workers of one name apart in the UI.
    """
    queue, _, gpus = name.rpartition(":")
    arguments = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", "1", "--name", f"{host}-{name}"]
    if queue:
        arguments += ["--work-queue", queue]
    # CUDA ends the list at a name that it doesn't know, such as `none`.
    return arguments, {"CUDA_VISIBLE_DEVICES": gpus.replace("-", ",")}


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

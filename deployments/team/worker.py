"""`python -m deployments.team.worker QUEUE:GPU`: the process of the systemd unit musicgen-worker@."""

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
"""Time for a run to save and to report to the server. The unit's TimeoutStopSec is longer."""


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
    """Return Prefect's command for a worker, and its environment variables.

    Args:
        name: `QUEUE:GPU`, or `GPU` alone for all queues. GPU is a number, several joined by `-`, or `none`.
        host: name of the machine, which distinguishes workers of the same name in the UI.
    """
    queue, _, gpus = name.rpartition(":")
    arguments = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", "1", "--name", f"{host}-{name}"]
    if queue:
        arguments += ["--work-queue", queue]
    # CUDA ends the list at an unknown name, such as `none`.
    return arguments, {"CUDA_VISIBLE_DEVICES": gpus.replace("-", ",")}


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""The parts of Prefect that `up` runs as processes of their own, and how they and what they started come to an end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

import psutil  # type: ignore[import-untyped]

from deployments.registering import ROOT

STOP_SECONDS = 40  # a training that is stopped saves a checkpoint first

Part = subprocess.Popen[bytes]


@contextlib.contextmanager
def parts(commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> Iterator[list[Part]]:
    """Commands of Prefect, each with what is added to its environment, that run until the block is left.

    Each is in a session of its own, so that a Ctrl-C reaches us alone and we stop the parts in order.
    """
    running: list[Part] = []
    try:
        for command, environment in commands:
            line = [sys.executable, "-m", "prefect", *command]
            running.append(subprocess.Popen(line, start_new_session=True, cwd=ROOT, env=os.environ | environment))
        yield running
    finally:
        _stop(running)


def _stop(running: Sequence[Part]) -> None:
    """End parts and everything that they started.

    The runs of workers first: a training then saves where it is and tells the server. A worker that is told to end
    while it has a run waits for it, however long that takes, or kills it at once.
    """
    _end([process for part in running for process in _with_descendants(part.pid) if not _is_in_session(process, part)])
    _end([process for part in running for process in _with_descendants(part.pid)])
    for part in running:
        part.wait()


def _end(processes: Sequence[psutil.Process]) -> None:
    """Ask processes to end, wait for that, and make those that have not, with what they started meanwhile."""
    for process in processes:
        _send(process, signal.SIGTERM)
    _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in {process for parent in left for process in _with_descendants(parent.pid)}:
        _send(process, signal.SIGKILL)


def _is_in_session(process: psutil.Process, part: Part) -> bool:
    """Whether it belongs to a part itself; workers start their runs in sessions of their own."""
    try:
        return os.getsid(process.pid) == part.pid
    except ProcessLookupError:
        return True


def _with_descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, chosen: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(chosen)

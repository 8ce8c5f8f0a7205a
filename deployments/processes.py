"""The parts of Prefect that `up` runs as processes of their own, and how they and what they started come to an end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import psutil  # type: ignore[import-untyped]

from deployments.environment import ROOT
from flows.orphans import be_sent_at_parents_death

STOP_SECONDS = 40  # a training that is stopped saves a checkpoint first

RESTART_SECONDS = 5

PLAIN = {"PREFECT_CLI_WRAP_LINES": "false", "PREFECT_CLI_COLORS": "false"}
"""Settings of parts whose output is read: a line is a line"""

Part = subprocess.Popen[bytes]
Command = tuple[list[str], dict[str, str]]
"""Of Prefect, and what is added to its environment."""


class Parts:
    """Commands of Prefect that run as processes of their own, until the block is left.

    Each is in a session of its own, so that a Ctrl-C reaches us alone and we stop the parts in order. Should we be
    killed, they are killed, too: workers that live on would be a second set beside the next `up`'s.

    Args:
        commands: what to run.
        stdout, stderr: as `subprocess.Popen` takes them; by default they share ours.
        on_start: called with each part that has been started, also again.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        stdout: IO[bytes] | int | None = None,
        stderr: int | None = None,
        on_start: Callable[[Part], object] = lambda part: None,
    ) -> None:
        self._commands, self._streams, self._on_start = commands, (stdout, stderr), on_start
        self.running: list[Part] = []

    def __enter__(self) -> Parts:
        try:
            for command in self._commands:
                self.running.append(_start(*command, *self._streams))
                self._on_start(self.running[-1])
        except BaseException:
            _stop(self.running)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        _stop(self.running)

    def restart_ended(self) -> Iterator[Command]:
        """Start again those that have ended by themselves → their commands."""
        for number, (part, command) in enumerate(zip(self.running, self._commands, strict=True)):
            if part.poll() is not None:
                time.sleep(RESTART_SECONDS)
                self.running[number] = _start(*command, *self._streams)
                self._on_start(self.running[number])
                yield command


def _start(
    command: Sequence[str], environment: Mapping[str, str], stdout: IO[bytes] | int | None, stderr: int | None
) -> Part:
    return subprocess.Popen(
        [sys.executable, "-m", "prefect", *command],
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, **PLAIN, **environment},
        stdout=stdout,
        stderr=stderr,
        preexec_fn=_begin,
    )


def _begin() -> None:
    be_sent_at_parents_death(signal.SIGKILL)
    # A worker that is asked to end sends itself a SIGINT, to which `musicgen-flows up &` would have made it deaf.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(running: Sequence[Part]) -> None:
    """End parts and everything that they started, and let nothing interrupt that."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second one would leave half of it running
        signal.signal(stop, signal.SIG_IGN)
    end_runs(running, STOP_SECONDS)
    _end([process for part in running for process in _with_descendants(part.pid)])
    for part in running:
        part.wait()


def end_runs(workers: Sequence[Part], patience_s: float) -> None:
    """End the runs of workers, which save where they are and tell the server. The workers stay halted (SIGSTOP).

    A worker that is asked to end kills its runs at once, or waits for them however long that takes. Halted, it can do
    neither, nor take another run, while those that it has are asked. Once: at a second SIGTERM they would leave their
    saving, too.
    """
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    runs = [run for worker in workers for run in _runs(worker)]
    for run in runs:
        _send(run, signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while any(_lives(run) for run in runs) and time.monotonic() < deadline:
        time.sleep(0.1)


def _runs(worker: Part) -> list[psutil.Process]:
    """Its children in sessions of their own, in which workers start their runs."""
    try:
        children = psutil.Process(worker.pid).children()
        return [child for child in children if os.getsid(child.pid) != os.getsid(worker.pid)]
    except (psutil.NoSuchProcess, ProcessLookupError):
        return []


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)  # the halted worker can't reap them
    except psutil.NoSuchProcess:
        return False


def _end(processes: Sequence[psutil.Process]) -> None:
    """Ask processes, halted ones too, to end, wait for that, and make those that have not, with what they started."""
    for process in processes:
        _send(process, signal.SIGTERM)
        _send(process, signal.SIGCONT)
    _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in {process for parent in left for process in _with_descendants(parent.pid)}:
        _send(process, signal.SIGKILL)


def _with_descendants(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _send(process: psutil.Process, chosen: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(chosen)

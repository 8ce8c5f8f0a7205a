"""The child processes of `up`: Prefect's server and workers, and how they and their descendants are stopped."""

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
from flows.startup import be_sent_at_parents_death

STOP_SECONDS = 40  # a training run that is stopped saves a checkpoint first

RESTART_SECONDS = 5

PLAIN = {"PREFECT_CLI_WRAP_LINES": "false", "PREFECT_CLI_COLORS": "false"}
"""Settings of parts whose output is read: a line is a line"""

Part = subprocess.Popen[bytes]
Command = tuple[list[str], dict[str, str]]
"""A command of Prefect, and additions to its environment."""


class Parts:
    """Prefect commands that run as child processes until the block is left.

    Each has its own session, so that Ctrl-C reaches only this process, which stops the parts in order. If this process
    is killed, they are killed, too: surviving workers would run beside those of the next `up`.

    Args:
        commands: the commands and their environments.
        stdout, stderr: as for `subprocess.Popen`. Inherited by default.
        on_start: called with each part that was started or restarted.
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
        """Restart the parts that have ended, and return their commands."""
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
    # On SIGTERM a worker sends itself SIGINT, which it would ignore after `musicgen-flows up &`.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _stop(running: Sequence[Part]) -> None:
    """Stop parts and all of their descendants. Further signals are ignored meanwhile."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second signal would leave some of them running
        signal.signal(stop, signal.SIG_IGN)
    end_runs(running, STOP_SECONDS)
    _end([process for part in running for process in _with_descendants(part.pid)])
    for part in running:
        part.wait()


def end_runs(workers: Sequence[Part], patience_s: float) -> None:
    """Stop the runs of workers. The runs save a checkpoint and report to the server; the workers stay halted (SIGSTOP).

    On SIGTERM a worker kills its runs at once, or waits for them without limit. While it is halted it does neither, nor
    does it take another run. Each run gets a single SIGTERM: a second one would interrupt the saving.
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
    """Return a worker's children in other sessions: workers start each run in a new session."""
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
    """Terminate processes, halted ones too, and wait. Kill the remaining ones with their descendants."""
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

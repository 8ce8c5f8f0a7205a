"""End runs whose worker has died: they could not be cancelled, and would hold a GPU that the next job needs."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_worker() -> None:
    """Have SIGTERM end this process when its worker dies, or now if it is dead; a training run saves first.

    This applies only to processes that a worker started, on Linux. Elsewhere an orphan runs to completion; run
    directories are locked. Call it in the main thread.
    """
    if sys.platform.startswith("linux") and "PREFECT__WORKER_NAME" in os.environ:
        # SIGHUP instead of SIGTERM: the kernel sends the signal for each of a dying worker's threads, and a second
        # SIGTERM would interrupt the checkpoint that the first one started.
        signal.signal(signal.SIGHUP, _end_once)
        be_sent_at_parents_death(signal.SIGHUP)
        if not _is_worker(os.getppid()):
            os.kill(os.getpid(), signal.SIGHUP)


def be_sent_at_parents_death(chosen: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, chosen)


def _end_once(*_: object) -> None:
    if signal.signal(signal.SIGHUP, signal.SIG_IGN) != signal.SIG_IGN:  # otherwise a second signal arrived in between
        os.kill(os.getpid(), signal.SIGTERM)


def _is_worker(process: int) -> bool:
    """Return whether a process is `prefect worker start`, a run's parent until it dies and the run is reparented."""
    try:
        return b"worker" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False

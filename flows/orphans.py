"""No run outlives its worker: one without a worker can't be cancelled, and holds a GPU that the next job counts on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_worker() -> None:
    """Have this process told to end (SIGTERM) when its worker dies, or now if it is dead; a training saves first.

    Only where a worker started it, on Linux. Elsewhere an orphan runs to its end; run directories are locked.
    To be called in the main thread.
    """
    if sys.platform.startswith("linux") and "PREFECT__WORKER_NAME" in os.environ:
        # Not SIGTERM itself: the kernel sends its signal for each of a dying worker's threads, and a second SIGTERM
        # would interrupt the saving that the first one has begun.
        signal.signal(signal.SIGHUP, _end_once)
        be_sent_at_parents_death(signal.SIGHUP)
        if not _is_worker(os.getppid()):
            os.kill(os.getpid(), signal.SIGHUP)


def be_sent_at_parents_death(chosen: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent dies; on Linux alone."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, chosen)


def _end_once(*_: object) -> None:
    if signal.signal(signal.SIGHUP, signal.SIG_IGN) != signal.SIG_IGN:  # else a second one came in between
        os.kill(os.getpid(), signal.SIGTERM)


def _is_worker(process: int) -> bool:
    """Whether it is `prefect worker start`, as the parent of a run is until it dies and another process adopts it."""
    try:
        return b"worker" in Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False

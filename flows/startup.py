"""Set-up of every flow run: its worker's end ends it, it has its keys, and its log has downloads and the core's lines.

Nothing here imports Prefect at module level: doctor checks whether it can be imported.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from musicgen_core.errors import MusicgenError
from musicgen_core.escaping import print_logs_safely

BLOCKS = {"WANDB_API_KEY": "wandb-api-key", "HF_TOKEN": "hf-token"}
"""Secret blocks of API keys, by environment variable"""
_PR_SET_PDEATHSIG = 1  # prctl(2)


def set_up_run() -> None:
    """Tie this run to its worker, export its keys, and forward downloads and the core's log to the run."""
    from tasks.progress import report_downloads

    print_logs_safely()
    _log_reasons_once()
    end_with_worker()
    export_secrets()
    report_downloads()
    # Prefect adds a handler to this logger, but the level stays the root logger's: warnings only.
    logging.getLogger("musicgen_core").setLevel(logging.INFO)


def export_secrets() -> None:
    """Export each key that is stored as a Secret block to the environment, unless it is set there already.

    Whitespace around a key, as copying may add it, is stripped: both services would reject the key.
    """
    from prefect.blocks.system import Secret

    for variable, block in BLOCKS.items():
        key = os.environ.get(variable, "").strip()
        if not key:
            try:
                key = str(Secret.load(block).get()).strip()  # type: ignore[union-attr]
            except ValueError:  # there is no such block
                continue
        os.environ[variable] = key


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


class _StatesSuffice(logging.Filter):
    """Drop tracebacks of user-facing errors and of cancelled runs: the log line with the final state has the message.

    Prefect logs such an error up to three times, the last time after the final state, which should be the last line.
    A final state of Cancelled, which a person asked for, is logged as INFO instead of ERROR.
    """

    def __init__(self) -> None:
        from prefect.exceptions import CancelledRun

        super().__init__()
        self._expected = (MusicgenError, CancelledRun)

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR and record.getMessage().startswith("Finished in state Cancel"):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return not (record.exc_info and isinstance(record.exc_info[1], self._expected))


def _log_reasons_once() -> None:
    """End the logs of this process's runs with the final state, without tracebacks of user-facing errors."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, _StatesSuffice) for existing in logger.filters):
            logger.addFilter(_StatesSuffice())

"""Tasks of single archives: retries after transient errors, persisted results, progress, and an early end."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from prefect import Task, get_run_logger, task
from prefect.context import TaskRunContext

from musicgen_core.errors import Cancelled, DeviceError, ModelError, MusicgenError, reason_of
from musicgen_core.escaping import one_line
from musicgen_core.language import message
from musicgen_core.stages import announce
from musicgen_core.wording import counted
from tasks.archives_log import ArchiveProgress, ArchiveReport
from tasks.progress import report

if TYPE_CHECKING:
    from musicgen_core.data.decoding import Counts, OnClip

P = ParamSpec("P")
R = TypeVar("R")
_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}
"""Errors of a folder that can't be written: not transient, so retries would not help"""
RETRY_SECONDS: list[float] = [2, 10, 60]
"""Approximate delay before each retry"""
_stopping: set[str] = set()


def archive_task(
    verb: str, cache_key: Callable[[TaskRunContext, dict[str, Any]], str | None]
) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return a decorator for the task of an archive, which is named `VERB-STEM` after its parameter `stem`.

    Args:
        cache_key: returns the key of the persisted result, or None for a new result.
    """
    return task(
        task_run_name=f"{verb}-{{stem}}",
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=RETRY_SECONDS,
        retry_jitter_factor=0.5,
        retry_condition_fn=may_help,
        persist_result=True,
        cache_key_fn=cache_key,
    )


def stop_tasks(flow_run: str) -> None:
    """Stop the archives' tasks of a flow run in this process after their current clip."""
    _stopping.add(flow_run)


def is_stopped(flow_run: str) -> bool:
    """Return whether the tasks of a flow run shall end."""
    return flow_run in _stopping  # a function, because the task, pickled for Dask, would carry its own copy of the set


def concerns_all(error: BaseException) -> bool:
    """Return whether an error concerns all archives, such as a missing model or GPU, or a full disk."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_full or isinstance(error, (ModelError, DeviceError)) or type(error).__name__ == "AcceleratorError"


def may_help(task: Any, run: Any, state: Any) -> bool:
    """Return whether to retry: after transient errors of storage or memory, not after permanent ones."""
    error = state.result(raise_on_failure=False)
    is_lasting = isinstance(error, (MusicgenError, Cancelled)) or getattr(error, "errno", None) in _LASTING
    if is_lasting or concerns_all(error):
        return False
    if run.run_count <= len(RETRY_SECONDS):
        seconds = RETRY_SECONDS[run.run_count - 1]
        announce(
            message(
                "{task}: {reason}; trying again in about {seconds:g} s",
                task=run.name,
                reason=reason_of(error),
                seconds=seconds,
            )
        )
    return True


def progress_of(stem: str) -> OnClip:
    """Return a function that reports the progress in an archive to the flow's log."""

    def on_clip(counts: Counts) -> None:
        report(ArchiveProgress(stem, counts.rows, counts.rejected, counts.total))

    return on_clip


def log_result(stem: str, result: ArchiveReport) -> None:
    """Log the end of an archive, and the first of its rejected clips."""
    logger, rejected = get_run_logger(), result.rejected
    # the run's table and its line a minute show it
    logger.debug("%s: %s, %d rejected", stem, counted(result.clips, "clip"), len(rejected))
    if rejected:  # one line per archive: many archives may have thousands
        some = "; ".join(f"{one_line(entry.clip)}: {entry.reason}" for entry in rejected[:3])
        logger.warning("%s: rejected %s%s", stem, some, " …" if len(rejected) > 3 else "")

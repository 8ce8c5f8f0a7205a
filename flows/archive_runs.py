"""Runs with a task per archive: finding archives, running their tasks, and the reasons of failed ones."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from prefect import Task, runtime
from prefect.futures import PrefectFuture, as_completed
from upath import UPath

from flows.runners import call_everywhere
from musicgen_core import storage
from musicgen_core.config import ReadingSettings
from musicgen_core.data.archive import clip_names
from musicgen_core.data.members import limits_of
from musicgen_core.errors import ArchiveError, DeviceError, MusicgenError, StorageError
from musicgen_core.language import message, stored_message
from musicgen_core.wording import joined_sentences
from tasks.archive_tasks import concerns_all, stop_tasks
from tasks.archives_log import ArchiveReport, ArchivesLog

SHOWN = 3
"""Remarks, and reasons of failed archives, that are listed where there are many"""
Work = dict[str, Any]
"""Parameters of one archive's task, with its `archive`, `stem` and `flow_run`"""
R = TypeVar("R", bound=ArchiveReport)
_core_logger = logging.getLogger("musicgen_core.archives")  # the terminal shows what the core logs


class FlowResult(Protocol):
    """The result of a flow with a task per archive."""

    @property
    def failed(self) -> Mapping[str, str]:
        """Reasons of the failed archives, by path."""
        ...


class ArchivesFailed(ArchiveError):
    """Some archives failed; `result` is the flow's, with all reasons, and with the results of the other archives."""

    def __init__(self, reasons: str, result: FlowResult) -> None:
        super().__init__(
            reasons, message("Do what each reason says, then run or retry again: finished archives are kept")
        )
        self.args = (reasons, result)  # arguments for unpickling
        self.result = result

    @property
    def unnamed(self) -> dict[str, str]:
        """Return the reasons of those failed archives that the error message only counts."""
        return dict(list(self.result.failed.items())[SHOWN:])


def warn_in_terminal(remarks: Sequence[str]) -> None:
    """Log the first few remarks and the number of others, also in the terminal: the run may fail before its table."""
    for remark in remarks[:SHOWN]:
        _core_logger.warning("%s", remark)
    if len(remarks) > SHOWN:
        _core_logger.warning("and %d more of this kind, listed in the run's summary", len(remarks) - SHOWN)


def absolute(location: str) -> str:
    """Return an absolute path or URL: the process of a task may be in another directory."""
    return str(storage.as_path(location).absolute())


def this_run() -> str:
    """Return the id of this attempt of the flow run: stopping its tasks must not stop those of a retry."""
    return f"{runtime.flow_run.id}-{runtime.flow_run.run_count}"


def spread_limit(archives: Sequence[UPath], limit: int | None, settings: ReadingSettings) -> dict[UPath, int | None]:
    """Return the archives to work on, each with its limit of clips; None: no limit."""
    if limit is None:
        return dict.fromkeys(archives)
    limits: dict[UPath, int | None] = {}
    left = limit
    for archive in archives:
        if left <= 0:
            break
        clips = len(names_in(archive, settings))
        limits[archive] = None if clips <= left else left
        left -= clips
    return limits


def names_in(archive: UPath, settings: ReadingSettings) -> list[str]:
    """Return the names of an archive's clips; none if it can't be read, which its task reports."""
    try:
        return clip_names(archive, settings.name_encoding, limits_of(settings))
    except ArchiveError:
        return []


def run_on_archives(
    task: Task[..., R],
    work: Sequence[Work],
    runner: Any,
    log: ArchivesLog,
    is_stale: Callable[[R, Work], bool] = lambda result, entry: False,
) -> tuple[list[R], dict[str, str]]:
    """Return the results of the archives' tasks, and the reasons of failed ones by stem, both in archive order.

    Args:
        task: made by `archive_task`.
        work: at least one archive.
        runner: a started task runner.
        log: receives the end of each archive.
        is_stale: whether a persisted result is out of date, so that the task has to run again.

    Raises:
        MusicgenError: an error that all archives would meet, such as a full disk or a GPU that failed.
    """
    try:
        futures = {entry["stem"]: runner.submit(task, entry) for entry in work}
        results, failed, cached = _collect(futures, log)
        stale = [entry for entry in work if entry["stem"] in cached and is_stale(results[entry["stem"]], entry)]
        again = task.with_options(refresh_cache=True)
        redone, failed_again, _ = _collect({entry["stem"]: runner.submit(again, entry) for entry in stale}, log)
    except BaseException:
        call_everywhere(runner, stop_tasks, work[0]["flow_run"])  # the tasks would outlive a cancelled run
        raise
    results |= redone
    failed |= failed_again
    done = [results[stem] for stem in futures if stem in results and stem not in failed]
    return done, {stem: failed[stem] for stem in futures if stem in failed}


def _collect(
    futures: Mapping[str, PrefectFuture[Any]], log: ArchivesLog
) -> tuple[dict[str, Any], dict[str, str], set[str]]:
    """Wait for all tasks; return results and reasons of failure, both by stem, and the stems of cached results."""
    stems = {future.task_run_id: stem for stem, future in futures.items()}
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    cached: set[str] = set()
    for future in as_completed(list(futures.values())):
        stem, outcome = stems[future.task_run_id], _outcome(future)
        if not isinstance(outcome, Exception):
            results[stem] = outcome
            if future.state.name == "Cached":
                cached.add(stem)
        elif concerns_all(outcome):
            raise _not_of_the_archive(outcome, stem)
        else:
            failed[stem] = str(outcome) or type(outcome).__name__
        log.end(stem, results.get(stem), stem in cached, failed.get(stem, ""))
    return results, failed, cached


def _outcome(future: PrefectFuture[Any]) -> Any:
    """Return the value that a task returned, or the exception that it raised."""
    try:
        return future.result(raise_on_failure=False)
    except Exception as error:  # from Dask: the task killed one worker after another, or the scheduler is gone
        return error


def _not_of_the_archive(error: Exception, stem: str) -> Exception:
    """Return the error of the whole run, for an error that every other archive would meet, too."""
    if isinstance(error, OSError):
        where = message(" at {path}", path=error.filename) if error.filename else ""
        return StorageError(
            message("no space left{where} while working on {archive}", where=where, archive=stem),
            message("Make room and run or retry again: archives that are complete are kept"),
        )
    if isinstance(error, MusicgenError):
        return error
    return DeviceError(
        message("the GPU failed while working on {archive} ({error})", archive=stem, error=error),
        message("Check the GPU with nvidia-smi, and run again"),
    )


def reasons_of_failure(failed: Mapping[str, str], archives: str) -> str:
    """Return the number of failed archives, the reasons of the first few, and the number of others.

    Args:
        failed: reasons by path.
        archives: all archives, counted.
    """
    reasons = [
        stored_message(f"{path}{reason.removeprefix(name)}")
        if reason.startswith(name := storage.as_path(path).name)
        else message("{subject}: {found}", subject=path, found=stored_message(reason))
        for path, reason in failed.items()
    ]
    more = [message("and {number:,} more", number=len(reasons) - SHOWN)] if len(reasons) > SHOWN else []
    return message(
        "{failed} of {archives} failed: {reasons}",
        failed=len(failed),
        archives=archives,
        reasons=joined_sentences([*reasons[:SHOWN], *more]),
    )

"""Progress of running tasks and downloads, for a listener in this process (the command line) and for the run's log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from musicgen_core.model import hub

if TYPE_CHECKING:
    from musicgen_core.model.hub_upload import UploadProgress

LOG_EVERY_SECONDS = 60.0
"""Logs of a night must stay readable: one line a minute of normal progress"""


@dataclass(frozen=True)
class Update:
    """A progress update.

    Attributes:
        stage: fetch, tokenize, train, evaluate, generate or push.
        item: the archive, run directory or piece of music in progress.
        done, total: progress in the stage's unit: MB, archives, steps, clips or frames. A total of None is unknown.
        text: a short text to show with it.
    """

    stage: str
    item: str
    done: int
    total: int | None
    text: str = ""


Listener = Callable[[Any], None]
# Task runners copy the context into their threads, so a listener set around a flow receives updates of its tasks.
_listener: ContextVar[Listener] = ContextVar("progress_listener", default=lambda update: None)


def listener() -> Listener:
    """Return the listener of this context."""
    return _listener.get()


@contextmanager
def listening(heard_by: Listener) -> Iterator[None]:
    """Replace the listener of this context by `heard_by`; it is called from any thread."""
    token = _listener.set(heard_by)
    try:
        yield
    finally:
        _listener.reset(token)


def report(update: Any) -> None:
    _listener.get()(update)


class Pace:
    """Rate limiter: due at once, and then at most every `seconds`. Thread-safe."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def is_due(self) -> bool:
        """Return whether the interval has passed; only one caller per interval gets True."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return False
            self._next = now + self.seconds
            return True


def run_logger() -> Any:
    """Return the logger of the current run, or this module's logger outside of runs."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger(__name__)


class _OncePerMessage(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._paces: dict[str, Pace] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        return self._paces.setdefault(str(record.msg), Pace(LOG_EVERY_SECONDS)).is_due()


@contextmanager
def quieted(name: str) -> Iterator[None]:
    """Limit each kind of message of a logger to one a minute."""
    logger, filter_ = logging.getLogger(name), _OncePerMessage()
    logger.addFilter(filter_)
    try:
        yield
    finally:
        logger.removeFilter(filter_)


def duration(seconds: float) -> str:
    """Return seconds as a clock time: `1:02:05` for 3725."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def local_now() -> str:
    """Return the current time with its zone, such as 2026-11-23 03:00:05 JST."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")


def report_downloads() -> None:
    """Report downloads of the current run as progress updates, in MB."""
    hub.set_download_listener(lambda progress: report(fetched(progress)))


def fetched(progress: hub.DownloadProgress) -> Update:
    """Return a download's progress as an update, in MB."""
    done, total = progress.done // 10**6, progress.total // 10**6
    return Update("fetch", progress.repo, done, total, f"{progress.bytes_per_sec / 1e6:.1f} MB/s, {progress.repo}")


def uploaded(progress: UploadProgress) -> Update:
    """Return an upload's progress as an update, in MB."""
    done, total = progress.done // 10**6, progress.total // 10**6
    return Update("push", progress.repo, done, total, f"{progress.bytes_per_sec / 1e6:.1f} MB/s, {progress.repo}")

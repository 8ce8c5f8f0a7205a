"""Progress of running tasks, for whoever listens in this process (the command line) and for the run's log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

LOG_EVERY_SECONDS = 60.0
"""Logs are read by people, after nights: a line a minute of what goes well."""


@dataclass(frozen=True)
class Update:
    """How far one piece of work is.

    Attributes:
        stage: fetch, tokenize, train, evaluate or generate.
        item: what is worked on: an archive, a run directory, a piece of music.
        done, total: in the unit of the stage: MB, archives, steps, clips, frames. A total of None is not known.
        text: a few words to show beside it.
    """

    stage: str
    item: str
    done: int
    total: int | None
    text: str = ""


Listener = Callable[[Any], None]


def _nobody(update: Any) -> None:
    """Who listens where no one does."""


# Task runners copy the context into their threads, so a listener set around a flow hears its tasks.
_listener: ContextVar[Listener] = ContextVar("progress_listener", default=_nobody)


def listener() -> Listener:
    """Who listens in this context."""
    return _listener.get()


@contextmanager
def listening(heard_by: Listener) -> Iterator[None]:
    """Have what is reported in this context, from any thread, passed to `heard_by` instead of who listened before."""
    token = _listener.set(heard_by)
    try:
        yield
    finally:
        _listener.reset(token)


def report(update: Any) -> None:
    _listener.get()(update)


class Pace:
    """Says when something is due that is to happen every so many seconds at most, at first at once. For any thread."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._next = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time; who hears True is the only one for the next seconds."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return False
            self._next = now + self.seconds
            return True


def run_logger() -> Any:
    """The log of the current run, or a plain one outside of runs."""
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
    """Let each kind of message of a logger through once a minute only."""
    logger, filter_ = logging.getLogger(name), _OncePerMessage()
    logger.addFilter(filter_)
    try:
        yield
    finally:
        logger.removeFilter(filter_)


def duration(seconds: float) -> str:
    """3725 → `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def utc_now() -> str:
    """2026-11-23 03:00:05 UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())

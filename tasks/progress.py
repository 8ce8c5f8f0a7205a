"""Progress of running tasks, for whoever listens in this process (the command line) and for the Prefect UI."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectException

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """How far one piece of work is.

    Attributes:
        stage: tokenize, train or generate.
        item: what is worked on: an archive, a run directory, a piece of music.
        done, total: in the unit of the stage: archives, steps, steps. A total of None is not known.
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


class ProgressArtifact:
    """A progress artifact of the running task, updated every few seconds at most."""

    def __init__(self, description: str, every_seconds: float = 5.0) -> None:
        self._every = every_seconds
        self._last = time.monotonic()
        self._lock = threading.Lock()
        self._id = cast(UUID, create_progress_artifact(0.0, description=description))

    def update(self, done: int, total: int, description: str) -> None:
        with self._lock:
            now = time.monotonic()
            if done < total and now - self._last < self._every:
                return
            self._last = now
        with server_may_be_away():
            update_progress_artifact(self._id, progress=round(100 * done / max(1, total), 1), description=description)


class TableArtifact:
    """A table artifact of the running flow or task whose rows are replaced as the work goes on."""

    def __init__(self, key: str, description: str) -> None:
        self._id = cast(UUID, create_table_artifact([], key=key, description=description))

    def update(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with server_may_be_away(), get_client(sync_client=True) as client:
            client.update_artifact(self._id, ArtifactUpdate(data=json.dumps(rows)))


@contextmanager
def server_may_be_away() -> Iterator[None]:
    """A server that doesn't answer must not stop the work: the next update tells."""
    try:
        yield
    except (PrefectException, OSError, httpx.HTTPError) as error:
        logger.debug("progress could not be shown: %s", error)

"""Progress of running tasks, for whoever listens in this process (the command line) and for the Prefect UI."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectException


@dataclass(frozen=True)
class Update:
    """How far one piece of work is.

    Attributes:
        stage: tokenize, train or generate.
        item: what is worked on: an archive, a run directory, a piece of music.
        done, total: in the unit of the stage: clips, steps, steps. A total of None is not known.
        text: a few words to show beside it.
    """

    stage: str
    item: str
    done: int
    total: int | None
    text: str = ""


# Task runners copy the context into their threads, so a listener set around a flow hears its tasks.
_listener: ContextVar[Callable[[Update], None] | None] = ContextVar("progress_listener", default=None)


def listen(listener: Callable[[Update], None]) -> None:
    """Have every update of flows called from here on in this context passed to `listener`, from any thread."""
    _listener.set(listener)


def report(update: Update) -> None:
    listener = _listener.get()
    if listener is not None:
        listener(update)


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
        try:
            update_progress_artifact(self._id, progress=round(100 * done / max(1, total), 1), description=description)
        except (PrefectException, OSError):  # a server that is away must not stop the work; the next update tells
            return

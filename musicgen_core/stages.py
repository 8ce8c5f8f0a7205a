"""Stages of long-running work, announced to listeners when they begin.

The terminal shows a stage beside a spinner, a run's page as its state, and the log has a line for each.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from musicgen_core.language import message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """A stage of work that has begun.

    Attributes:
        text: the activity, as a participle: `reading the model`.
        done, total: progress, if the total is known.
    """

    text: str
    done: int | None = None
    total: int | None = None

    def __str__(self) -> str:
        return str(self.words)

    @property
    def words(self) -> str:
        """Return the stage and its progress as a message."""
        if self.done is None or self.total is None:
            return self.text
        return message("{stage}, {done:,} of {total:,}", stage=self.text, done=self.done, total=self.total)


Listener = Callable[[Stage], None]
_listeners: list[Listener] = []


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Add a listener for announcements of any thread of this process while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(text: str) -> None:
    """Announce a stage before it begins, to listeners and in the log."""
    logger.info("%s", text)
    mention(text)


def mention(text: str) -> None:
    """Announce a stage to listeners only: it is frequent, or logged in other words."""
    pass_on(Stage(text))


def advance(text: str, done: int, total: int) -> None:
    """Announce the progress of a stage whose total is known."""
    pass_on(Stage(text, done, total))


def announce_torch() -> None:
    """Announce the import of PyTorch."""
    announce_import("torch", "PyTorch")


def announce_import(module: str, package: str) -> None:
    """Announce a slow import, unless the module has been imported already."""
    if module not in sys.modules:
        announce(message("loading {package}", package=package))


def pass_on(stage: Stage) -> None:
    """Pass a stage to the listeners of this process."""
    for listener in list(_listeners):
        listener(stage)

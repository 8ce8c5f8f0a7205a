"""What long work does before, between and after its own progress: announced when it begins, to whoever listens.

The terminal shows it beside a spinner, a run's page as its state, and a log has a line for each.
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
    """Work that has begun.

    Attributes:
        text: what is done, as a participle: `reading the model`.
        done, total: how far it is, where its end is known.
    """

    text: str
    done: int | None = None
    total: int | None = None

    def __str__(self) -> str:
        return str(self.words)

    @property
    def words(self) -> str:
        """The stage and how far it is, as a message."""
        if self.done is None or self.total is None:
            return self.text
        return message("{stage}, {done:,} of {total:,}", stage=self.text, done=self.done, total=self.total)


Listener = Callable[[Stage], None]
_listeners: list[Listener] = []


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Have what any thread of this process announces passed to `listener`, too."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(text: str) -> None:
    """Say what is about to be done, before it is begun."""
    logger.info("%s", text)
    mention(text)


def mention(text: str) -> None:
    """As `announce`, of what happens so often that a log would be full of it, or is logged in other words."""
    pass_on(Stage(text))


def advance(text: str, done: int, total: int) -> None:
    """Say how far the work is; its end is known."""
    pass_on(Stage(text, done, total))


def announce_torch() -> None:
    """Announce the import of PyTorch."""
    announce_import("torch", "PyTorch")


def announce_import(module: str, package: str) -> None:
    """Announce an import that takes seconds, where the module has not been imported yet."""
    if module not in sys.modules:
        announce(message("loading {package}", package=package))


def pass_on(stage: Stage) -> None:
    """Tell whoever listens in this process."""
    for listener in list(_listeners):
        listener(stage)

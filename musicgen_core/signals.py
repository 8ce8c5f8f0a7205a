"""Signals that end a run, deferred while its state is inconsistent."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Run a block whole: signals that arrive meanwhile are handled right after it.

    Their handlers may raise at any point of the main thread: Python's own for Ctrl-C, and Prefect's, which ends a
    cancelled run. In other threads, where no handler runs, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        arrived.append(number)

    try:
        with ExitStack() as restored:
            for number in ENDING:
                if (handler := signal.getsignal(number)) is not None:  # None, one that Python did not set, stays
                    restored.callback(signal.signal, number, handler)
                    signal.signal(number, defer)
            yield
    finally:
        for late in arrived:
            signal.raise_signal(late)

"""This process: the environment variables that it passes on, and signals deferred while its state is inconsistent."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ROOT = Path(__file__).resolve().parents[1]


def drop_empty(*prefixes: str) -> None:
    """Unset empty variables with these prefixes. Compose files set them; WandB, Prefect and the Hub reject them."""
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        if not os.environ[name].strip():
            del os.environ[name]


def python_path() -> str:
    """Return PYTHONPATH with this project first and without empty entries, which mean the working directory."""
    return os.pathsep.join(filter(None, [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))


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

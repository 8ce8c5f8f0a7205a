"""Work beside a training that must not stop it: attempts that are repeated, failures that are told, a thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from musicgen_core.errors import raise_if_interrupted, reason_of

logger = logging.getLogger(__name__)

RETRY_DELAYS_S = (1.0, 4.0)
"""Before another attempt at what the training waits for."""
BACKGROUND_DELAYS_S = (2.0, 15.0, 60.0)
"""Before another attempt at what nothing waits for."""


class Abandoned(Exception):
    """The job was told to stop."""


class Failures:
    """What could not be written, for the log, the metrics and the result of a training."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def report(self, text: str) -> None:
        logger.warning(text)
        if text not in self.texts:
            self.texts.append(text)

    def resolve(self, text: str, how: str) -> None:
        """Add to a text that was reported how it ended."""
        self.texts = [f"{one}: {how}" if one == text else one for one in self.texts]


def attempt(
    action: Callable[[], None], delays_s: Sequence[float], pause: Callable[[float], object] = time.sleep
) -> Exception | None:
    """Do `action`, after an error once more after each delay → the last error, None if it was done."""
    for delay in (*delays_s, None):
        try:
            action()
            return None
        except Abandoned:
            raise
        except Exception as error:  # storages raise many kinds, and none may end a training
            raise_if_interrupted(error)
            if delay is None:
                return error
            logger.info("trying again in %g s after %s", delay, reason_of(error))
            pause(delay)
    raise AssertionError("the last attempt returns")


class Background:
    """A thread that does one job after the other; at most one waits.

    A job that fails is repeated, then reported. `stopping` is set when the rest is to be abandoned: long jobs look
    at it and raise Abandoned.
    """

    def __init__(self, name: str, failures: Failures) -> None:
        self.stopping = threading.Event()
        self._failures = failures
        self._jobs: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue(maxsize=1)
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)

    def submit_unless_waiting(self, what: str, job: Callable[[], None]) -> None:
        """Have a job done; `what` is said if it fails. Comes back at once: where a job waits, that one will do."""
        if not self.stopping.is_set() and not self._jobs.full():
            self._start()
            self._jobs.put((what, job))

    def attempt(self, action: Callable[[], None], is_once: bool = False) -> Exception | None:
        """Do a part of a job, with the delays of one or once → the last error. Raises Abandoned: it was interrupted."""
        return attempt(action, () if is_once else BACKGROUND_DELAYS_S, self._pause)

    def drain(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait until every job is done or has failed. `check` is called meanwhile, and may raise."""
        while self._jobs.unfinished_tasks:
            check()
            with self._jobs.all_tasks_done:
                if self._jobs.unfinished_tasks:
                    self._jobs.all_tasks_done.wait(0.2)

    def abandon(self) -> None:
        """Give up all jobs; comes back at once. The thread ends when the job that it is in has noticed."""
        if self.stopping.is_set():
            return
        self.stopping.set()
        with suppress(queue.Empty):
            while True:
                self._jobs.get_nowait()
                self._jobs.task_done()
        if self.thread.is_alive():
            self._jobs.put(None)

    def close(self, patience_s: float) -> None:
        """End the thread, when it has done what it was given; waits for that, but no longer than this."""
        if self.thread.is_alive():
            if not self.stopping.is_set():
                self._jobs.put(None)
            self.thread.join(patience_s)

    def _start(self) -> None:
        if self.thread.ident is None:
            self.thread.start()

    def _work(self) -> None:
        while True:
            entry = self._jobs.get()
            if entry is None:
                self._jobs.task_done()
                return
            what, job = entry
            try:
                error = self.attempt(job)
                if error is not None:
                    self._failures.report(f"{what} ({reason_of(error)})")
            except Abandoned:
                logger.info("abandoned: the training was interrupted")
            except BaseException as error:  # without its thread a training would wait for it forever
                self._failures.report(f"{what} ({reason_of(error)})")
            finally:
                self._jobs.task_done()

    def _pause(self, delay_s: float) -> None:
        if self.stopping.wait(delay_s):
            raise Abandoned

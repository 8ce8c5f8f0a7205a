"""Work beside a training run that must not end it: retries, reported failures, queued files, a background thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from musicgen_core.errors import raise_if_interrupted, reason_of

logger = logging.getLogger(__name__)

RETRY_DELAYS_S = (1.0, 4.0)
"""Delays before each retry of what the training run waits for."""
BACKGROUND_DELAYS_S = (2.0, 15.0, 60.0)
"""Delays before each retry of background work."""


class Abandoned(Exception):
    """Raised by a job that was asked to stop."""


class Failures:
    """Collects failed writes, for the log, the metrics and the result of a training run."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def report(self, text: str) -> None:
        logger.warning(text)
        if text not in self.texts:
            self.texts.append(text)

    def resolve(self, text: str, how: str) -> None:
        """Append to a reported failure how it was resolved."""
        self.texts = [f"{one}: {how}" if one == text else one for one in self.texts]


def retry(
    action: Callable[[], None], delays_s: Sequence[float], pause: Callable[[float], object] = time.sleep
) -> Exception | None:
    """Run `action`, retrying after each delay, and return the last error, or None once it succeeds."""
    for delay in (*delays_s, None):
        try:
            action()
            return None
        except Abandoned:
            raise
        except Exception as error:  # storages raise many kinds, and none may end a training run
            raise_if_interrupted(error)
            if delay is None:
                return error
            logger.info("trying again in %g s after %s", delay, reason_of(error))
            pause(delay)
    raise AssertionError("the last attempt returns")


@dataclass(frozen=True)
class Write:
    """A file to write.

    Attributes:
        write: writes the whole file, or raises.
    """

    target: str
    write: Callable[[], None]


class WriteQueue:
    """Files to write, the oldest first, at most one for each path.

    A file that can't be written remains queued, and with it all that follow, since those may refer to it.

    Attributes:
        obstacle: why the first queued file could not be written.
    """

    def __init__(self) -> None:
        self.obstacle = ""
        self._queued: list[Write] = []

    def __len__(self) -> int:
        return len(self._queued)

    def put(self, *writes: Write) -> None:
        """Queue files, which replace queued ones of the same paths."""
        self._queued = self._with(writes)

    def flush(self, writes: Iterable[Write], delays_s: Sequence[float]) -> bool:
        """Write the queued files and then `writes`, and return whether all are written now.

        An interruption leaves the queue as it was, without `writes`: the trainer undoes the step and saves again.

        Args:
            writes: more files, which replace queued ones of the same paths.
            delays_s: delays before each retry of a file.
        """
        queued = self._with(writes)
        for number, file in enumerate(queued):
            if (error := retry(file.write, delays_s)) is not None:
                self.obstacle = f"{file.target} could not be written ({reason_of(error)})"
                self._queued = queued[number:]
                return False
        self._queued = []
        return True

    def _with(self, writes: Iterable[Write]) -> list[Write]:
        new = list(writes)
        replaced = {file.target for file in new}
        return [file for file in self._queued if file.target not in replaced] + new


class Background:
    """A thread that runs jobs one after the other, with at most one queued.

    A job that fails is retried, then reported. `stopping` is set when all jobs are to be abandoned: long jobs check it
    and raise Abandoned.
    """

    def __init__(self, name: str, failures: Failures) -> None:
        self.stopping = threading.Event()
        self._failures = failures
        self._jobs: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue(maxsize=1)
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)

    def submit_unless_waiting(self, what: str, job: Callable[[], None]) -> None:
        """Queue a job unless one is queued already, and return at once; `what` is reported if the job fails."""
        if not self.stopping.is_set() and not self._jobs.full():
            if self.thread.ident is None:
                self.thread.start()
            self._jobs.put((what, job))

    def retry(self, action: Callable[[], None], is_once: bool = False) -> Exception | None:
        """Run a part of a job, with retries unless `is_once`, and return the last error, or None if it succeeds.

        Raises:
            Abandoned: the job was asked to stop.
        """
        return retry(action, () if is_once else BACKGROUND_DELAYS_S, self._pause)

    def drain(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait until every job has ended; `check` is called repeatedly and may raise to stop waiting."""
        while self._jobs.unfinished_tasks:
            check()
            with self._jobs.all_tasks_done:
                if self._jobs.unfinished_tasks:
                    self._jobs.all_tasks_done.wait(0.2)

    def abandon(self) -> None:
        """Abandon all jobs and return at once; the thread ends when the running job checks `stopping`."""
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
        """End the thread after its queued jobs, and wait for that, at most `patience_s` seconds."""
        if self.thread.is_alive():
            if not self.stopping.is_set():
                self._jobs.put(None)
            self.thread.join(patience_s)

    def _work(self) -> None:
        while True:
            entry = self._jobs.get()
            if entry is None:
                self._jobs.task_done()
                return
            what, job = entry
            try:
                error = self.retry(job)
                if error is not None:
                    self._failures.report(f"{what} ({reason_of(error)})")
            except Abandoned:
                logger.info("abandoned: the training run was interrupted")
            except BaseException as error:  # if the thread died, the run would wait for it forever
                self._failures.report(f"{what} ({reason_of(error)})")
            finally:
                self._jobs.task_done()

    def _pause(self, delay_s: float) -> None:
        if self.stopping.wait(delay_s):
            raise Abandoned

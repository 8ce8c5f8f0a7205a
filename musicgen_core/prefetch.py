"""Compute ahead in threads, with results in order and a bound on the memory they hold."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Budget:
    """Admission control: work starts while the total cost held stays below a limit; a single item always may."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, cost: int) -> bool:
        """Wait for room and return True, or False if closed in the meantime."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._held == 0 or self._held + cost <= self._limit)
            self._held += cost
            return not self._closed

    def give(self, cost: int) -> None:
        with self._changed:
            self._held -= cost
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()


def prefetch(
    pool: ThreadPoolExecutor,
    items: Iterable[T],
    work: Callable[[T], R],
    cost: Callable[[T], int],
    limit: int,
) -> Generator[R]:
    """Yield `work(item)` for each item, in order, computed ahead in the pool while the cost held stays below `limit`.

    The iterator of items is advanced in a thread of its own, since that may be slow, too (a compressed stream is).

    Raises:
        Exception: any exception of `items` or `work`, at its position in the order. No thread is left running.
    """
    budget = _Budget(limit)
    ahead: SimpleQueue[tuple[Future[R], int] | BaseException | None] = SimpleQueue()

    def draw() -> None:
        try:
            for item in items:
                if not budget.take(needed := cost(item)):
                    return
                ahead.put((pool.submit(work, item), needed))
            ahead.put(None)
        except BaseException as error:
            ahead.put(error)

    drawer = threading.Thread(target=draw, name="prefetch", daemon=True)
    drawer.start()
    try:
        while (entry := ahead.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            future, held = entry
            yield future.result()
            del entry, future  # frees the result before more work is admitted
            budget.give(held)
    finally:
        budget.close()
        drawer.join()
        while not ahead.empty():  # no thread may still read a file that the caller is about to close
            if isinstance(entry := ahead.get(), tuple) and not entry[0].cancel():
                entry[0].exception()

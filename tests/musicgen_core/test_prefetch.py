from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.prefetch import prefetch


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@given(costs=st.lists(st.integers(0, 20), max_size=40), limit=st.integers(1, 30))
@settings(deadline=None, max_examples=50)
def test_results_come_in_order_whatever_the_costs(costs: list[int], limit: int, pool: ThreadPoolExecutor) -> None:
    items = list(enumerate(costs))
    assert list(prefetch(pool, items, lambda item: item[0], lambda item: item[1], limit)) == list(range(len(costs)))


def test_what_is_held_stays_below_the_limit(pool: ThreadPoolExecutor) -> None:
    held = most = 0
    lock = threading.Lock()

    def work(cost: int) -> int:
        nonlocal held, most
        with lock:
            held += cost
            most = max(most, held)
        time.sleep(0.001)
        return cost

    for cost in prefetch(pool, [3, 4, 2, 9, 1, 1, 8] * 5, work, lambda cost: cost, limit=10):
        with lock:
            held -= cost
    assert 9 <= most <= 10


def test_work_larger_than_the_limit_is_done_alone(pool: ThreadPoolExecutor) -> None:
    assert list(prefetch(pool, [1, 50, 1], str, lambda cost: cost, limit=10)) == ["1", "50", "1"]


def test_work_runs_ahead_of_its_use(pool: ThreadPoolExecutor) -> None:
    together = threading.Barrier(3)
    results = prefetch(pool, range(3), lambda _: together.wait(timeout=120), lambda _: 1, limit=3)
    assert sorted(results) == [0, 1, 2]


@pytest.mark.parametrize("broken", ["drawing", "working"])
def test_an_error_is_raised_at_its_position(pool: ThreadPoolExecutor, broken: str) -> None:
    def draw() -> Iterator[int]:
        yield from range(5)
        if broken == "drawing":
            raise OSError("gone")

    def work(item: int) -> int:
        if broken == "working" and item == 3:
            raise OSError("gone")
        return item

    results = prefetch(pool, draw(), work, lambda _: 1, limit=2)
    before = [0, 1, 2] if broken == "working" else [0, 1, 2, 3, 4]
    assert [next(results) for _ in before] == before
    with pytest.raises(OSError, match="gone"):
        next(results)


def test_nothing_runs_on_once_the_user_has_left(pool: ThreadPoolExecutor) -> None:
    running = threading.Semaphore(0)
    finished: list[int] = []

    def work(item: int) -> int:
        running.release()
        time.sleep(0.02)
        finished.append(item)
        return item

    results = prefetch(pool, range(1000), work, lambda _: 1, limit=4)
    assert next(results) == 0
    results.close()
    done = len(finished)
    time.sleep(0.1)
    assert len(finished) == done < 10

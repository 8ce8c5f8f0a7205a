from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from musicgen_core import storage
from musicgen_core.data.crops import Batch, prefetched, training_batch
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.shards import Row, ShardReport
from musicgen_core.errors import Cancelled

Make = Callable[[], Batch]


@pytest.fixture(scope="module")
def clips(
    write_shard: Callable[..., ShardReport], row: Callable[..., Row], tmp_path_factory: pytest.TempPathFactory
) -> Clips:
    folder = tmp_path_factory.mktemp("tokens")
    tokens = storage.as_path(folder / "tokens")
    write_shard(tokens, "a", [row(f"{number}.wav", 50 + number, f"clip {number}") for number in range(20)])
    return load_clips(tokens, "sha256:codec", folder / "cache")


@pytest.fixture
def batches(clips: Clips) -> list[Make]:
    return [partial(training_batch, clips, [step % 20, step * 7 % 20], 40, 0.5, 0, step) for step in range(60)]


@pytest.fixture(autouse=True)
def no_thread_is_left_behind() -> Iterator[None]:
    before = set(threading.enumerate())  # of other tests in this process, and they may end meanwhile
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("ahead", [1, 2, 100])
def test_prefetched_batches_equal_sequential_ones_in_order(batches: list[Make], ahead: int) -> None:
    with prefetched(batches, ahead) as made:
        for expected, batch in zip((make() for make in batches), made, strict=True):
            assert torch.equal(batch.codes, expected.codes) and torch.equal(batch.frames, expected.frames)
            assert batch.texts == expected.texts and batch.hashes.tolist() == expected.hashes.tolist()


def test_batches_are_made_while_one_is_used_and_not_too_many(batches: list[Make]) -> None:
    done = threading.Semaphore(0)
    count = 0

    def counted(make: Make) -> Batch:
        nonlocal count
        batch = make()
        count += 1
        done.release()
        return batch

    with prefetched((partial(counted, make) for make in batches), ahead=3) as made:
        next(made)
        for _ in range(4):
            assert done.acquire(timeout=120)
        time.sleep(0.05)
        assert count == 4  # the one in use and three ahead


@pytest.mark.parametrize("broken", ["making", "drawing"])
def test_an_error_is_raised_at_its_position(batches: list[Make], broken: str) -> None:
    def fail() -> Batch:
        raise OSError("gone")

    def draw() -> Iterator[Make]:
        yield from batches[:5]
        if broken == "drawing":
            fail()
        yield fail

    with prefetched(draw()) as made:
        for _ in range(5):
            next(made)
        with pytest.raises(OSError, match="gone"):
            next(made)


@pytest.mark.parametrize("error", [Cancelled, KeyboardInterrupt, SystemExit])
def test_leaving_ends_its_threads_whatever_the_reason(batches: list[Make], error: type[BaseException]) -> None:
    def leave() -> None:
        with prefetched(batches) as made:
            next(made)
            raise error

    with pytest.raises(error):
        leave()


def test_leaving_before_the_first_batch_draws_nothing() -> None:
    drawn = []

    def draw() -> Iterator[Make]:
        drawn.append(1)
        yield from ()

    with prefetched(draw()):
        pass
    assert not drawn


def test_a_signal_ends_the_wait_for_a_slow_batch(batches: list[Make]) -> None:
    slow = threading.Event()

    def wait() -> Batch:
        slow.wait(timeout=200)
        return batches[0]()

    def take_in_time(made: Iterator[Batch]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        next(made)

    def stop(*_: object) -> None:
        slow.set()
        raise Cancelled

    before = signal.signal(signal.SIGALRM, stop)
    try:
        started = time.monotonic()
        with pytest.raises(Cancelled), prefetched([wait] * 3) as made:
            take_in_time(made)
        assert time.monotonic() - started < 100
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_memory_is_pinned_for_gpus_only(batches: list[Make], device: torch.device | None) -> None:
    with prefetched(batches[:3], device=device) as made:
        assert not any(batch.codes.is_pinned() for batch in made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_lie_in_pinned_memory(batches: list[Make]) -> None:
    with prefetched(batches[:3], device=torch.device("cuda")) as made:
        assert all(batch.codes.is_pinned() and batch.frames.is_pinned() for batch in made)

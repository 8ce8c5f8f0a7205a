"""Files are written in order, and what can't be written stays queued."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from musicgen_core.training.files.background import Write, WriteQueue


class Disk:
    """Records what is written, and fails for the paths in `full`."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.full: set[str] = set()

    def file(self, target: str, content: str = "") -> Write:
        def write() -> None:
            if target in self.full:
                raise OSError(28, "No space left on device")
            self.written.append(target + content)

        return Write(target, write)


@pytest.fixture
def disk() -> Disk:
    return Disk()


def test_files_are_written_in_order(disk: Disk) -> None:
    queue = WriteQueue()
    assert queue.flush([disk.file("a"), disk.file("b")], ())
    assert disk.written == ["a", "b"] and not queue


def test_after_a_failure_that_file_and_all_after_it_stay_queued(disk: Disk) -> None:
    queue, disk.full = WriteQueue(), {"b"}
    assert not queue.flush([disk.file("a"), disk.file("b"), disk.file("c")], ())
    assert disk.written == ["a"] and len(queue) == 2
    assert queue.obstacle.startswith("b could not be written (no space left on device")
    disk.full = set()
    assert queue.flush([], ())
    assert disk.written == ["a", "b", "c"] and not queue


def test_a_newer_version_replaces_a_queued_one_and_keeps_its_own_order(disk: Disk) -> None:
    queue, disk.full = WriteQueue(), {"b"}
    queue.flush([disk.file("b", "1"), disk.file("c", "1"), disk.file("d", "1")], ())
    disk.full = set()
    assert queue.flush([disk.file("c", "2"), disk.file("b", "2")], ())
    assert disk.written == ["d1", "c2", "b2"]


def test_each_file_is_retried_after_the_delays(disk: Disk) -> None:
    tries: list[int] = []

    def write() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise OSError(28, "No space left on device")

    assert WriteQueue().flush([Write("a", write)], (0.0, 0.0))
    assert tries == [0, 1, 2]


@pytest.mark.parametrize("queued", [False, True])
def test_an_interruption_leaves_the_queue_as_it_was(disk: Disk, queued: bool) -> None:
    queue, interrupt = WriteQueue(), _interruption()
    if queued:
        queue.put(disk.file("a"))
    with pytest.raises(KeyboardInterrupt):
        queue.flush([disk.file("b"), Write("c", interrupt)], ())
    assert len(queue) == queued
    assert queue.flush([], ())
    assert disk.written == (["a", "b", "a"] if queued else ["b"])


def _interruption() -> Callable[[], None]:
    def interrupt() -> None:
        raise KeyboardInterrupt

    return interrupt

"""One run at a time in a run directory, and no run is blocked by one that has ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import RunDirectoryError, RunDirectoryUnavailable
from musicgen_core.training.files import run_lock
from musicgen_core.training.files.run_lock import Holder, RunLock

HOLD = """
import sys
from musicgen_core import storage
from musicgen_core.training.files.run_lock import RunLock
with RunLock(storage.as_path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lock that beats becomes stale, however long a busy machine keeps its thread waiting."""
    monkeypatch.setattr(run_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(run_lock, "STALE_AFTER_S", 120.0)


@pytest.fixture
def soon_stale(quick_beats: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "STALE_AFTER_S", 0.8)


@pytest.fixture(params=["local", "remote"])
def root(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path / "run") if request.param == "local" else bucket / "run"


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Holds the lock of `tmp_path / run`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)


def leave_note(root: UPath, note: Holder) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / run_lock.NAME).write_bytes(note.to_bytes())


def test_a_full_disk_is_named_with_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/\.lock'"), RunLock(UPath(tmp_path / "run")):
        pass


def test_a_second_run_is_refused_with_the_holder_and_a_next_step(root: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "fl0w")
    with RunLock(root), pytest.raises(RunDirectoryUnavailable, match="already active") as refused, RunLock(root):
        pass
    assert all(word in refused.value.found for word in (str(os.getpid()), os.uname().nodename, "fl0w", "since 20"))
    assert re.search(r"since [\d-]+ \d\d:\d\d [A-Z+-]", refused.value.found)
    assert "another run directory" in refused.value.next_step


def test_released_it_leaves_nothing_and_can_be_taken_again(root: UPath) -> None:
    for _ in range(3):
        with RunLock(root):
            assert (root / run_lock.NAME).exists()
        assert not (root / run_lock.NAME).exists()


def test_a_directory_created_for_the_lock_is_removed_if_empty(tmp_path: Path) -> None:
    made, used, before = (tmp_path / name for name in ("made", "used", "before"))
    before.mkdir()
    with RunLock(UPath(made)), RunLock(UPath(used)), RunLock(UPath(before)):
        (used / "latest.pt").touch()
    assert not made.exists() and (used / "latest.pt").exists() and before.is_dir()


def test_a_training_that_ends_in_an_error_releases_it(root: UPath) -> None:
    with pytest.raises(KeyboardInterrupt), RunLock(root):
        raise KeyboardInterrupt
    with RunLock(root):
        pass


def test_it_beats_while_it_is_held(root: UPath) -> None:
    def note() -> Holder:
        found = Holder.parse((root / run_lock.NAME).read_bytes())
        assert found is not None
        return found

    with RunLock(root):
        first = note()
        wait_until(lambda: note().beat > first.beat + 1)
        later = note()
    assert later.beat > first.beat + 1 and replace(later, beat=first.beat) == first


def test_another_process_is_kept_out_until_the_holder_is_killed(
    other_process: subprocess.Popen[str], tmp_path: Path
) -> None:
    root = storage.as_path(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=f"process {other_process.pid} "), RunLock(root):
        pass
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    started = time.monotonic()
    with RunLock(root):
        assert time.monotonic() - started < run_lock.STALE_AFTER_S / 2


@pytest.mark.usefixtures("soon_stale")
def test_a_process_that_is_stopped_still_holds_it(other_process: subprocess.Popen[str], tmp_path: Path) -> None:
    """No beat for longer than a stale lock's, but a live process all the same."""
    other_process.send_signal(signal.SIGSTOP)
    time.sleep(1.0)
    with pytest.raises(RunDirectoryError, match="already active"), RunLock(storage.as_path(tmp_path / "run")):
        pass


def test_a_retried_upload_after_a_lost_response_takes_the_lock(bucket: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = (bucket / "run").fs
    whole = fs.pipe_file

    def twice(path: str, *arguments: Any, **options: Any) -> None:
        whole(path, *arguments, **options)
        if options.get("mode") == "create":
            whole(path, *arguments, **options)

    monkeypatch.setattr(fs, "pipe_file", twice)
    with RunLock(bucket / "run") as lock:
        lock.check()


def test_an_object_of_a_dead_process_of_this_machine_is_stale_at_once(bucket: UPath) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    leave_note(bucket / "run", Holder(pid=gone.pid))
    started = time.monotonic()
    with RunLock(bucket / "run"):
        assert time.monotonic() - started < run_lock.STALE_AFTER_S / 2


@pytest.mark.usefixtures("soon_stale")
def test_another_machines_lock_is_stale_when_its_beat_stands_still(root: UPath) -> None:
    leave_note(root, Holder(host="elsewhere", kernel="other", pid=1))
    started = time.monotonic()
    with RunLock(root):
        assert time.monotonic() - started >= 0.8


def test_another_machines_lock_that_beats_is_respected(root: UPath) -> None:
    note = Holder(host="elsewhere", kernel="other", pid=1)
    leave_note(root, note)
    beat = threading.Timer(0.3, leave_note, (root, replace(note, beat=1)))
    beat.start()
    with pytest.raises(RunDirectoryError, match="process 1 on elsewhere"), RunLock(root):
        pass
    beat.join()


@pytest.mark.parametrize("left", [b"", b"\0" * 1024, b'{"host": "a", "pi', b'{"host": 3, "pid": "x"}'])
def test_a_damaged_note_on_a_local_disk_keeps_no_one_out(tmp_path: Path, left: bytes) -> None:
    (tmp_path / run_lock.NAME).write_bytes(left)
    with RunLock(storage.as_path(tmp_path)):
        pass


def link_to_a_file(path: Path) -> str:
    path.symlink_to(path.with_name("precious.txt"))
    return r"\.lock is a symbolic link to .*precious\.txt"


def link_to_nothing(path: Path) -> str:
    path.symlink_to(path.with_name("new.txt"))
    return "a symbolic link"


def make_a_folder(path: Path) -> str:
    path.mkdir()
    return "not the lock of a run"


def make_a_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "not the lock of a run"


def write_notes_of_another_program(path: Path) -> str:
    path.write_text("uv.lock of 2024\n" * 100)
    return "not the lock of a run"


@pytest.mark.parametrize(
    "make", [link_to_a_file, link_to_nothing, make_a_folder, make_a_pipe, write_notes_of_another_program]
)
def test_what_is_no_lock_is_refused_and_left_as_it_was(tmp_path: Path, make: Callable[[Path], str]) -> None:
    (tmp_path / "precious.txt").write_text("the only copy")
    path = tmp_path / run_lock.NAME
    message = make(path)
    content = path.read_bytes() if path.is_file() else None
    with pytest.raises(RunDirectoryError, match=message), RunLock(storage.as_path(tmp_path)):
        pass
    assert content == (path.read_bytes() if path.is_file() else None)
    assert {one.name for one in tmp_path.iterdir()} == {run_lock.NAME, "precious.txt"}


@pytest.mark.usefixtures("soon_stale")
def test_a_damaged_remote_lock_is_stale_without_a_heartbeat(bucket: UPath) -> None:
    (bucket / "run" / run_lock.NAME).write_bytes(b"half a no")
    with RunLock(bucket / "run"):
        pass


def test_a_run_that_lost_the_lock_ends_and_leaves_the_new_lock(bucket: UPath) -> None:
    other = Holder(host="elsewhere", kernel="other", pid=1)
    with RunLock(bucket) as lock:
        lock.check()
        leave_note(bucket, other)
        wait_until(lambda: lock.is_lost)
        with pytest.raises(RunDirectoryError, match=r"took over .*process 1 on elsewhere"):
            lock.check()
    assert Holder.parse((bucket / run_lock.NAME).read_bytes()) == other


def test_it_is_held_until_the_last_thread_that_writes_has_ended(root: UPath) -> None:
    writing = threading.Event()
    thread = threading.Thread(target=writing.wait)
    thread.start()
    with RunLock(root) as lock:
        lock.hold_for([thread])
    with pytest.raises(RunDirectoryError, match="already active"), RunLock(root):
        pass
    writing.set()
    thread.join()
    wait_until(lambda: not (root / run_lock.NAME).exists())
    with RunLock(root):
        pass


def test_of_many_that_start_at_once_one_at_a_time_gets_it(root: UPath) -> None:
    inside, most, entered = 0, 0, 0
    guard = threading.Lock()

    def train() -> None:
        nonlocal inside, most, entered
        try:
            with RunLock(root):
                with guard:
                    inside, entered = inside + 1, entered + 1
                    most = max(most, inside)
                time.sleep(0.02)
                with guard:
                    inside -= 1
        except RunDirectoryError:
            pass

    threads = [threading.Thread(target=train) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and entered >= 1

"""A lock that allows one run at a time in a run directory.

The file `.lock` names the process that holds it, and has a heartbeat counter that changes every 20 s. On a local disk
the holder also has a `flock` on it, which the system releases when the process ends. Elsewhere a lock is stale if its
process is known to be dead, or if its heartbeat stops. The heartbeat is compared over time rather than with a clock,
since the clocks of two machines may differ; a run whose machine was lost can thus restart a few minutes later.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import platform
import secrets
import stat
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import TypeAdapter
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import RunDirectoryError, RunDirectoryUnavailable
from musicgen_core.language import message
from musicgen_core.stages import mention
from musicgen_core.wording import dated

logger = logging.getLogger(__name__)
NAME = ".lock"
BEAT_S = 20.0
STALE_AFTER_S = 180.0
"""Without a heartbeat for this long, a holder on another machine is considered dead."""
_NOTE_START = b'{"host": '  # distinguishes a lock file, even a damaged one, from other files
_NOTE_BYTES = 1024  # constant, so that one write replaces all of it


def flow_run_id() -> str | None:
    """Return the Prefect flow run that this process was started for, or None."""
    return os.environ.get("PREFECT__FLOW_RUN_ID") or None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        kernel: processes of the same kernel see each other's flocks.
        pids: PID namespace; processes of the same one see each other's ids.
        token: random, different for each holder.
    """

    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)
    since: str = field(default_factory=lambda: datetime.now(UTC).isoformat(" ", "seconds"))
    flow_run: str | None = field(default_factory=flow_run_id)
    kernel: str = field(default_factory=lambda: _boot_id() or platform.node())
    pids: str = field(default_factory=_pid_namespace)
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    beat: int = 0

    def __str__(self) -> str:
        flow_run = f", flow run {self.flow_run}" if self.flow_run else ""
        return f"process {self.pid} on {self.host}{flow_run}, since {_shown(self.since)}"

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).ljust(_NOTE_BYTES).encode()

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        try:
            return _HOLDER.validate_json(data)
        except ValueError:
            return None

    def is_seen_dead(self) -> bool:
        """Return whether the process is known to have ended: it ran on this machine, and its id no longer exists."""
        here = Holder()
        if (self.kernel, self.pids) != (here.kernel, here.pids) or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except PermissionError:
            pass
        return False


def _shown(since: str) -> str:
    try:
        return dated(datetime.fromisoformat(since))
    except ValueError:
        return since


_HOLDER = TypeAdapter(Holder)
_UNKNOWN = Holder(host="an unknown machine", pid=0, since="an unknown time", flow_run=None, kernel="", token="")
"""The holder of an object that is not a lock file."""


class RunLock:
    """The exclusive right to write to a run directory, as a context manager.

    If it created the directory and nothing was written there, it removes it at the end.

    Raises:
        RunDirectoryError: another run holds the lock.
    """

    def __init__(self, root: UPath) -> None:
        self.root = root
        self._path = root / NAME
        self._holder = Holder()
        self._descriptor: int | None = None
        self._stop = threading.Event()
        self._lost_to: Holder | None = None
        self._made_root = False
        self._beating = threading.Thread(target=self._beat, name="run lock", daemon=True)
        self._users: list[threading.Thread] = []

    def __enter__(self) -> Self:
        if storage.is_local(self.root):
            self._made_root = not self.root.exists()
            self._take_local()
        else:
            self._take_remote()
        self._beating.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Release the lock, or if threads still write to the directory, once they have ended."""
        writing = [thread for thread in self._users if thread.is_alive()]
        if writing:
            threading.Thread(target=self._release_after, args=(writing,), name="run lock's end", daemon=True).start()
        else:
            self._release()

    def check(self) -> None:
        """Check that the lock is still held.

        Raises:
            RunDirectoryError: another run considered it stale, because this machine hung, and took it over.
        """
        if self._lost_to is not None:
            raise RunDirectoryUnavailable(
                message(
                    "another run took over {root} while this one hung ({lost_to})",
                    root=self.root,
                    lost_to=self._lost_to,
                ),
                message("Leave the directory to it, or stop it and run again"),
            )

    @property
    def is_lost(self) -> bool:
        return self._lost_to is not None

    def hold_for(self, threads: list[threading.Thread]) -> None:
        """Postpone the release until these threads have ended."""
        self._users.extend(threads)

    def _take_local(self) -> None:
        while True:
            storage.make_folder(self.root)
            try:
                descriptor = self._open()
            except FileNotFoundError:
                if self.root.exists():
                    raise
                continue  # its creator has just removed it
            try:
                self._flock(descriptor)
                found = Holder.parse(os.pread(descriptor, _NOTE_BYTES, 0))
                if found is not None and found.kernel != self._holder.kernel and not self._is_stale(found):
                    raise self._held(self._read() or found)  # network file systems may not share flocks
                self._write_new(descriptor)
                # Otherwise its holder deleted it between the two calls, and this lock is on a deleted file. Compared by
                # content, as FUSE file systems may not keep inode numbers.
                if self._read() == self._holder:
                    self._descriptor = descriptor
                    return
            finally:
                if self._descriptor is None:
                    os.close(descriptor)

    def _open(self) -> int:
        """Open the lock file, created if missing; a symbolic link is refused, as it could lead to a file elsewhere."""
        try:
            descriptor = storage.open_file_alone(str(self._path), os.O_RDWR | os.O_CREAT)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise self._foreign() from error
            raise
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        content = os.pread(descriptor, len(_NOTE_START), 0).strip(b"\0") if is_file else b""
        if is_file and _NOTE_START.startswith(content):
            return descriptor
        os.close(descriptor)
        raise self._foreign()

    def _foreign(self) -> RunDirectoryError:
        path = Path(str(self._path))
        found = f"a symbolic link to {path.readlink()}" if path.is_symlink() else "not the lock of a run"
        return RunDirectoryError(
            message("{path} is {found}", path=path, found=found),
            message("Move or delete it if you don't need it, or give another run directory"),
        )

    def _write_new(self, descriptor: int) -> None:
        try:
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, self._holder.to_bytes(), 0)
        except OSError as error:  # without a file name, as on a full disk
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def _flock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._held(self._read()) from None
        except OSError as error:
            logger.info("%s has no flock (%s): a lock there is recognised by its heartbeat alone", self.root, error)
            found = self._read()
            if found is not None and not found.is_seen_dead() and not self._is_stale(found):
                raise self._held(self._read() or found) from None

    def _take_remote(self) -> None:
        fs, path = self._path.fs, self._path.path
        while True:
            try:
                fs.pipe_file(path, self._holder.to_bytes(), mode="create")  # atomic; fails if it exists
                return
            except FileExistsError:
                found = self._read()
            if found is not None:
                if found.token == self._holder.token:
                    return  # a retried upload found the object that its first attempt had created
                if not found.is_seen_dead() and not self._is_stale(found):
                    raise self._held(self._read() or found) from None
                again = self._read()
                if again is not None and again.token == found.token:
                    logger.info("%s was left locked by %s, which is gone", self.root, found)
                    with suppress(FileNotFoundError):
                        fs.rm_file(path)

    def _is_stale(self, found: Holder) -> bool:
        """Wait for a heartbeat, and return whether there was none for too long or the lock is gone."""
        logger.info("%s is locked by %s; waiting up to %.0f s for a sign of life", self.root, found, STALE_AFTER_S)
        mention(message("waiting for a sign of life of {found}", found=found))
        deadline = time.monotonic() + STALE_AFTER_S
        while time.monotonic() < deadline:
            time.sleep(min(1.0, BEAT_S / 4))
            again = self._read()
            if again != found:
                return again is None
        return True

    def _read(self) -> Holder | None:
        try:
            if storage.is_local(self._path):
                return Holder.parse(Path(str(self._path)).read_bytes())
            return Holder.parse(self._path.fs.cat_file(self._path.path)) or _UNKNOWN
        except FileNotFoundError:
            return None

    def _held(self, by: Holder | None) -> RunDirectoryError:
        return RunDirectoryUnavailable(
            message(
                "a training run is already active in {root} ({holder})",
                root=self.root,
                holder=by or "it does not say which",
            ),
            message("Wait for it or stop it, or give another run directory"),
        )

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(BEAT_S):
            beat += 1
            try:
                found = self._read()
                if found is not None and found.token != self._holder.token:
                    self._lost_to = found
                    return
                note = replace(self._holder, beat=beat).to_bytes()
                if self._descriptor is not None:
                    os.pwrite(self._descriptor, note, 0)
                else:
                    self._path.fs.pipe_file(self._path.path, note)
            except Exception as error:  # storages raise many kinds; the next heartbeat may succeed
                logger.warning("the lock of %s could not be renewed (%s)", self.root, error)

    def _release_after(self, threads: list[threading.Thread]) -> None:
        for thread in threads:
            thread.join()
        self._release()

    def _release(self) -> None:
        self._stop.set()
        self._beating.join()
        try:
            found = self._read()
            if found is not None and found.token == self._holder.token:
                self._path.unlink(missing_ok=True)  # while the flock is held: the next holder creates a new file
        except Exception as error:  # a remaining lock becomes stale
            logger.warning("the lock of %s could not be taken away (%s)", self.root, error)
        if self._descriptor is not None:
            os.close(self._descriptor)  # before the directory is removed: a mounted drive keeps open files in it
            self._descriptor = None
        if self._made_root:
            with suppress(OSError):  # not empty: the run left files there
                Path(str(self.root)).rmdir()

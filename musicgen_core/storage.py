"""Files wherever they are: local paths and fsspec URLs behind one type, written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import fsspec
from upath import UPath

from musicgen_core import fuse_mounts
from musicgen_core.errors import ConfigError
from musicgen_core.language import message

fsspec.register_implementation("gs", "musicgen_core.google_storage.GoogleStorage", clobber=True)
fsspec.register_implementation("gcs", "musicgen_core.google_storage.GoogleStorage", clobber=True)
_SCRATCH = "musicgen-scratch-"
_LOCK = ".lock"
_PARTIAL = re.compile(r".+\.\d+-[0-9a-f]{8}\.partial")
_YOUNG_S = 5.0
"""A file that is younger may not be locked yet by the process that made it."""
Location = str | os.PathLike[str]
Version = tuple[int, int]
"""Bytes and time of change, in ns, of a local file."""


def as_path(location: Location | UPath) -> UPath:
    """A local path or any fsspec URL (`gs://bucket/folder`) → a path with pathlib's methods.

    Raises:
        ConfigError: a URL of a kind that is not known.
    """
    try:
        path = UPath(location)
    except ValueError as error:
        raise ConfigError(
            message("{location} can't be used as a path ({error})", location=location, error=error),
            message("Give a local path or a URL such as gs://…"),
        ) from error
    if is_local(path):
        return UPath(Path(path.path).expanduser())
    try:
        path.fs  # noqa: B018  loads what the kind of URL needs
    except ImportError as error:
        raise ConfigError(
            message("{location} can't be used: {error}", location=location, error=error),
            message("Install it, or use another place"),
        ) from error
    return path


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def make_folder(path: UPath) -> None:
    """Make a local folder where there is none; remote ones come with their files.

    Raises:
        ConfigError: it can't be made.
    """
    if is_local(path):
        try:
            Path(str(path)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                message("{path} can't be a folder ({strerror})", path=path, strerror=error.strerror),
                message("Give another place"),
            ) from error


@contextmanager
def publish(target: UPath) -> Iterator[Path]:
    """Give a local path to write to; move it to `target` whole if the block succeeds, else leave `target` as it was.

    A local target is written beside and renamed, so a reader sees the old file or the new one; on Google Drive's mount
    it may see none for a moment. An object store shows an object only once its upload is complete.

    Raises:
        OSError: the file can't be written; `filename` says which.
    """
    if is_local(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _partial_of(Path(str(target)))
        try:
            with _naming(str(target), str(beside)), _locked(beside, os.O_RDWR | os.O_CREAT):
                yield beside
                with open(beside, "rb") as written:
                    os.fsync(written.fileno())
            if fuse_mounts.is_mounted(beside.parent):
                fuse_mounts.replace(beside, Path(str(target)))
            else:
                os.replace(beside, str(target))
        finally:
            beside.unlink(missing_ok=True)
    else:
        with scratch_folder() as folder:
            local = folder / target.name
            with _naming(str(local)):
                yield local
            upload(local, target)


@contextmanager
def publish_folder(target: Path) -> Iterator[Path]:
    """Give a local folder to fill; rename it to `target` if the block succeeds, else delete it.

    What a process that was killed left of the same target is deleted first.

    Raises:
        OSError: the folder can't be made, or something is at `target` by then.
    """
    _delete_partials(target.parent, lambda path: path.is_dir() and path.name.startswith(f"{target.name}."))
    beside = _partial_of(target)
    beside.mkdir(parents=True)
    try:
        with _locked(beside, os.O_RDONLY):
            yield beside
            if target.is_dir():
                target.rmdir()  # fails if something has come into it since
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def delete_partials(folder: UPath) -> None:
    """Delete the files that `publish` had begun in a local folder when its process was killed; no others."""
    if is_local(folder):
        _delete_partials(Path(str(folder)), Path.is_file)


def is_partial(name: str) -> bool:
    """Whether a file or folder of this name is one that `publish` or `publish_folder` begins."""
    return _PARTIAL.fullmatch(name) is not None


def _partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[None]:
    """Hold a lock on a file or folder, which shows that its process lives."""
    descriptor = os.open(path, flags, 0o666)
    try:
        with suppress(OSError):  # not every file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _delete_partials(folder: Path, is_meant: Callable[[Path], bool]) -> None:
    for path in folder.glob("*.partial"):
        if is_partial(path.name) and not path.is_symlink():
            with suppress(OSError):  # it is in use, another process was quicker, or there are no locks
                if is_meant(path) and time.time() - path.stat().st_mtime > _YOUNG_S:
                    _delete_unlocked(path)


def _delete_unlocked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: str, beside: str | None = None) -> Iterator[None]:
    """Have an OSError name the file: a write that fails says `[Errno 28] No space left on device` and no more."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, beside):
            raise OSError(error.errno, error.strerror, path) from error
        raise


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A temporary folder, deleted at the end. Those of processes that were killed are deleted first.

    Who uses a folder holds a lock in it, which ends with the process: a staged archive of 5 GB would else stay
    behind each time that a job is killed.
    """
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{_SCRATCH}*"):
        _delete_if_left(left)
    hidden = Path(tempfile.mkdtemp(prefix=".musicgen-", dir=place))  # not to be found before it is locked
    folder = hidden.with_name(f"{_SCRATCH}{hidden.name.removeprefix('.musicgen-')}")
    with open(hidden / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hidden.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _delete_if_left(folder: Path) -> None:
    with suppress(OSError), open(folder / _LOCK, "r+") as lock:  # it is in use, or another process was quicker
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)


def write_text(target: UPath, text: str) -> None:
    """Write a small text file whole."""
    with publish(target) as path:
        path.write_text(text, encoding="utf-8")


def create(target: UPath, text: str) -> bool:
    """Write a small text file where there is none, atomically where the storage can → whether it was written."""
    try:
        if is_local(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(str(target), "x", encoding="utf-8") as file:
                file.write(text)
        else:
            target.fs.pipe_file(target.path, text.encode(), mode="create")
    except FileExistsError:
        return False
    return True


def upload(local: Path, target: UPath) -> None:
    """Copy one local file to a URL or another local path."""
    if is_local(target):
        with publish(target) as beside:
            shutil.copyfile(local, beside)
    else:
        target.fs.put_file(str(local), target.path)


def move(path: UPath, target: UPath) -> None:
    """Rename a file within one storage."""
    if is_local(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(str(path), str(target))
    else:
        path.fs.mv(path.path, target.path)


def upload_tree(folder: Path, target: UPath, uploaded: dict[Path, Version] | None = None) -> None:
    """Copy every file under a local folder to the same place under `target`; those that vanish meanwhile are left out.

    Args:
        uploaded: a memory of earlier calls with the same places: what has not changed since is not copied again.
    """
    uploaded = {} if uploaded is None else uploaded
    for file in sorted(folder.rglob("*")):
        try:
            status = file.stat()
            version = (status.st_size, status.st_mtime_ns)
            if stat.S_ISREG(status.st_mode) and uploaded.get(file) != version:
                upload(file, target.joinpath(*file.relative_to(folder).parts))
                uploaded[file] = version
        except FileNotFoundError:
            if file.exists():
                raise  # the trouble is the target's


@contextmanager
def staged(path: UPath) -> Iterator[Path]:
    """A local view of one file: the file itself, or a download that is deleted afterwards."""
    if is_local(path):
        yield Path(str(path))
        return
    with scratch_folder() as folder:
        local = folder / path.name
        path.fs.get_file(path.path, str(local))
        yield local


def require_file(path: UPath) -> None:
    """Raises OSError where a local path is a pipe, a device or a folder: opening a pipe may wait for ever."""
    if is_local(path) and not stat.S_ISREG(Path(str(path)).stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))


def open_file_alone(path: str, flags: int) -> int:
    """An opener for `open` to write with: refuses symbolic links, which lead out of a folder from elsewhere, and pipes.

    Raises:
        OSError: it is a link, a pipe that nobody reads, a folder, or can't be opened.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def read_text(path: UPath) -> str:
    """Read a small text file.

    Raises:
        OSError: it can't be read, or is a pipe, a device or a folder.
        ValueError: it is not in UTF-8.
    """
    require_file(path)
    return path.read_text(encoding="utf-8")


def free_name_beside(path: UPath) -> UPath:
    """Return a name for what is set aside as damaged: `metrics.damaged-1.jsonl`, or the next number that is free."""
    names = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not (name.exists() or (is_local(name) and Path(str(name)).is_symlink())))


def version_of(path: UPath) -> str:
    """What the storage says of a file that changes when the file does. For memories of this process, not to keep."""
    if is_local(path):
        status = Path(str(path)).stat()
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    path.fs.invalidate_cache(path.path)  # a listing made earlier may be older than the file
    return str(path.fs.info(path.path))  # more than ukey(), which over http is the address alone


def content_sha256(path: UPath) -> str:
    """A hash of a file's content, read once for each version of it."""
    return _content_sha256(str(path), version_of(path))


@lru_cache(maxsize=64)
def _content_sha256(location: str, _version: str) -> str:
    with as_path(location).open("rb") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def glob(location: Location) -> list[UPath]:
    """Files that a pattern such as `gs://bucket/archive_batch_00*.zip` names, sorted.

    Raises:
        ConfigError: the pattern is not valid.
    """
    pattern = as_path(location)
    try:
        if is_local(pattern):
            root = Path(pattern.anchor) if pattern.is_absolute() else Path()
            relative = str(pattern)[len(pattern.anchor) :] if pattern.is_absolute() else str(pattern)
            return sorted(as_path(path) for path in root.glob(relative) if path.is_file())
        found = pattern.fs.glob(pattern.path, detail=True)
    except ValueError as error:
        raise ConfigError(
            message("{location} can't be used as a pattern ({error})", location=location, error=error),
            message("Use * within a name"),
        ) from error
    files = (path.removeprefix("/") for path, info in found.items() if info["type"] == "file")
    return sorted(as_path(f"{pattern.protocol}://{path}") for path in files)

"""Local paths and fsspec URLs behind one type, with atomic writes."""

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

from musicgen_core.errors import ConfigError
from musicgen_core.language import message

for _protocol in ("gs", "gcs"):
    fsspec.register_implementation(_protocol, "musicgen_core.google_storage.GoogleStorage", clobber=True)
WHOLE = ".whole"
"""Suffix of a complete file on a FUSE file system that is about to replace the one without it"""
_SCRATCH = "musicgen-scratch-"
_LOCK = ".lock"
_PARTIAL = re.compile(r".+\.\d+-[0-9a-f]{8}\.partial")
_YOUNG_S = 5.0
"""A younger file may not be locked yet by the process that created it"""
Location = str | os.PathLike[str]
Version = tuple[int, int]
"""Size in bytes and modification time in ns of a local file"""


def as_path(location: Location | UPath) -> UPath:
    """Return a local path or fsspec URL (`gs://bucket/folder`) as a path with pathlib's methods.

    Raises:
        ConfigError: the URL's protocol is unknown.
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
        path.fs  # noqa: B018  imports the protocol's implementation
    except ImportError as error:
        raise ConfigError(
            message("{location} can't be used: {error}", location=location, error=error),
            message("Install it, or use another location"),
        ) from error
    return path


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def make_folder(path: UPath) -> None:
    """Create a local folder if it doesn't exist; remote ones exist through their files.

    Raises:
        ConfigError: the folder can't be created.
    """
    if is_local(path):
        try:
            Path(str(path)).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                message("{path} can't be a folder ({strerror})", path=path, strerror=error.strerror),
                message("Give another location"),
            ) from error


@contextmanager
def publish(target: UPath) -> Iterator[Path]:
    """Provide a local path to write to; move it to `target` if the block succeeds, else leave `target` as it was.

    A local target is written beside and renamed, so a reader sees the old file or the new one; on a mounted Google
    Drive it may see none for a moment. An object store shows an object only once its upload is complete.

    Raises:
        OSError: the file can't be written; `filename` names it.
    """
    if is_local(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = _partial_of(Path(str(target)))
        try:
            with _naming(str(target), str(beside)), _locked(beside, os.O_RDWR | os.O_CREAT):
                yield beside
                with open(beside, "rb") as written:
                    os.fsync(written.fileno())
            if is_on_fuse(beside.parent):
                _replace_on_fuse(beside, Path(str(target)))
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
    """Provide a local folder to fill; rename it to `target` if the block succeeds, else delete it.

    Leftovers of killed processes with the same target are deleted first.

    Raises:
        OSError: the folder can't be created, or `target` exists by then.
    """
    _delete_partials(target.parent, lambda path: path.is_dir() and path.name.startswith(f"{target.name}."))
    beside = _partial_of(target)
    beside.mkdir(parents=True)
    try:
        with _locked(beside, os.O_RDONLY):
            yield beside
            if target.is_dir():
                target.rmdir()  # fails if it is no longer empty
            beside.rename(target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def is_on_fuse(folder: Path) -> bool:
    """Return whether an existing folder is on a FUSE file system (Linux only), such as Google Drive in Colab."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return False
    kinds = [line.partition(" - ")[2].split()[0] for line in mounts if line.split()[2] == number]
    # The root disk of a rootless container may be FUSE; fuseblk is a disk, too.
    return any(kind == "fuse" or (kind.startswith("fuse.") and not kind.endswith("overlayfs")) for kind in kinds)


def _replace_on_fuse(new: Path, target: Path) -> None:
    """Move a complete file to `target` in the same folder; on Drive a rename over a file may fail or leave both.

    For a moment `target` doesn't exist. If the process ends then, the complete file remains as `target.whole`, and
    `finish_replacement` or the next replacement of this target renames it.
    """
    whole = target.with_name(target.name + WHOLE)
    finish_replacement(whole)
    if target.exists():
        new.rename(whole)
        finish_replacement(whole)
    else:
        new.rename(target)


def finish_replacement(whole: Path) -> None:
    """Replace `NAME` by `NAME.whole` if the latter exists."""
    if whole.exists():
        target = whole.with_name(whole.name.removesuffix(WHOLE))
        if target.exists() and not target.is_symlink():
            os.truncate(target, 0)  # Drive keeps deleted files in its bin, where they take up space for a month
        target.unlink(missing_ok=True)
        whole.rename(target)


def delete_partials(folder: UPath) -> None:
    """Delete only the partial files that `publish` left in a local folder when its process was killed."""
    if is_local(folder):
        _delete_partials(Path(str(folder)), Path.is_file)


def is_partial(name: str) -> bool:
    """Return whether the name is that of a partial file or folder of `publish` or `publish_folder`."""
    return _PARTIAL.fullmatch(name) is not None


def _partial_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[None]:
    """Hold a lock on a file or folder, which shows that its process is alive."""
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
            with suppress(OSError):  # it is in use, another process was first, or locks aren't supported
                if is_meant(path) and time.time() - path.stat().st_mtime > _YOUNG_S:
                    _delete_unlocked(path, path)


def _delete_unlocked(path: Path, lock: Path) -> None:
    """Delete a file or folder unless another process holds a lock on `lock`; raise an OSError then."""
    descriptor = os.open(lock, os.O_RDONLY if lock.is_dir() else os.O_RDWR)
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
    """Add the file name to an OSError: a failed write reports only `[Errno 28] No space left on device`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, beside):
            raise OSError(error.errno, error.strerror, path) from error
        raise


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Provide a temporary folder and delete it at the end. Leftovers of killed processes are deleted first.

    The user of a folder holds a lock in it, which ends with the process. Otherwise each killed job would leave a
    staged archive of 5 GB behind.
    """
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{_SCRATCH}*"):
        with suppress(OSError):  # it is in use, or another process was first
            _delete_unlocked(left, left / _LOCK)
    hidden = Path(tempfile.mkdtemp(prefix=".musicgen-", dir=place))  # not to be found before it is locked
    folder = hidden.with_name(f"{_SCRATCH}{hidden.name.removeprefix('.musicgen-')}")
    with open(hidden / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hidden.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(target: UPath, text: str) -> None:
    """Write a small text file atomically."""
    with publish(target) as path:
        path.write_text(text, encoding="utf-8")


def create(target: UPath, text: str) -> bool:
    """Create a small text file unless it exists, atomically if the storage can; return whether it was written."""
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
    """Copy every file under a local folder to the same relative path under `target`; files that vanish are skipped.

    Args:
        uploaded: versions copied by earlier calls, updated in place; unchanged files are skipped.
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
                raise  # the target failed


@contextmanager
def staged(path: UPath) -> Iterator[Path]:
    """Provide a file locally: the file itself, or a download that is deleted afterwards."""
    if is_local(path):
        yield Path(str(path))
        return
    with scratch_folder() as folder:
        local = folder / path.name
        path.fs.get_file(path.path, str(local))
        yield local


def require_file(path: UPath) -> None:
    """Raise an OSError if a local path is a pipe, a device or a folder: opening a pipe may block forever."""
    if is_local(path) and not stat.S_ISREG(Path(str(path)).stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a file", str(path))


def open_file_alone(path: str, flags: int) -> int:
    """Open a file for writing, as an `opener` of `open`: refuses symbolic links, which may leave the folder, and pipes.

    Raises:
        OSError: the path is a link, a pipe without a reader, a folder, or can't be opened.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)


def read_text(path: UPath) -> str:
    """Read a small text file.

    Raises:
        OSError: the file can't be read, or is a pipe, a device or a folder.
        ValueError: the file is not UTF-8.
    """
    require_file(path)
    return path.read_text(encoding="utf-8")


def free_name_beside(path: UPath) -> UPath:
    """Return a free name for a damaged file that is set aside: `metrics.damaged-1.jsonl`, or the next number."""
    names = (path.with_name(f"{path.stem}.damaged-{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not (name.exists() or (is_local(name) and Path(str(name)).is_symlink())))


def version_of(path: UPath) -> str:
    """Return a token that changes when the file does. Only for caches of this process, not to be stored."""
    if is_local(path):
        status = Path(str(path)).stat()
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    path.fs.invalidate_cache(path.path)  # a listing made earlier may be older than the file
    return str(path.fs.info(path.path))  # unlike ukey(), which over http is only the URL


def content_sha256(path: UPath) -> str:
    """Return the SHA-256 of a file's content, read once for each version of it."""
    return _content_sha256(str(path), version_of(path))


@lru_cache(maxsize=64)
def _content_sha256(location: str, _version: str) -> str:
    with as_path(location).open("rb") as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


def glob(location: Location) -> list[UPath]:
    """Return the files that match a pattern such as `gs://bucket/archive_batch_00*.zip`, sorted.

    Raises:
        ConfigError: the pattern is invalid.
    """
    pattern = as_path(location)
    try:
        if is_local(pattern):
            local = Path(str(pattern))
            found_here = Path(local.anchor).glob(str(local.relative_to(local.anchor)))
            return sorted(as_path(path) for path in found_here if path.is_file())
        found = pattern.fs.glob(pattern.path, detail=True)
    except ValueError as error:
        raise ConfigError(
            message("{location} can't be used as a pattern ({error})", location=location, error=error),
            message("Use * within a name"),
        ) from error
    files = (path.removeprefix("/") for path, info in found.items() if info["type"] == "file")
    return sorted(as_path(f"{pattern.protocol}://{path}") for path in files)

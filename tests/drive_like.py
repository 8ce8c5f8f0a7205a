"""Mount a FUSE folder with Google Drive's restrictions until it is unmounted: python drive_like.py BACKING MOUNT

It has no rename over an existing file, no links, no locks and no stable inode numbers.
"""

from __future__ import annotations

import errno
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import mfusepy


class DriveLike(mfusepy.Operations):
    use_ns = True

    def __init__(self, backing: str) -> None:
        self.backing = Path(backing)
        self.numbers = itertools.count(1)

    def _at(self, path: str) -> Path:
        return self.backing / path.lstrip("/")

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._at(path))
        names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")
        times = {name: getattr(status, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
        return {**{name: getattr(status, name) for name in names}, **times, "st_ino": next(self.numbers)}

    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, Any], int]]:
        names = [".", "..", *(entry.name for entry in self._at(path).iterdir())]
        return [(name, self.getattr(f"{path}/{name}"), 0) for name in names]

    def mkdir(self, path: str, mode: int) -> int:
        self._at(path).mkdir(mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._at(path).rmdir()
        return 0

    def unlink(self, path: str) -> int:
        self._at(path).unlink()
        return 0

    def rename(self, old: str, new: str) -> int:
        if self._at(new).exists():
            raise mfusepy.FuseOSError(errno.EEXIST)
        self._at(old).rename(self._at(new))
        return 0

    def link(self, target: str, source: str) -> int:
        raise mfusepy.FuseOSError(errno.ENOTSUP)

    def symlink(self, target: str, source: str) -> int:
        raise mfusepy.FuseOSError(errno.ENOTSUP)

    def chmod(self, path: str, mode: int) -> int:
        raise mfusepy.FuseOSError(errno.ENOTSUP)

    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        os.utime(self._at(path), ns=times)
        return 0

    def flock(self, path: str, fh: int, operation: int) -> int:
        raise mfusepy.FuseOSError(errno.ENOTSUP)

    def lock(self, path: str, fh: int, command: int, lock: Any) -> int:
        raise mfusepy.FuseOSError(errno.ENOTSUP)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~os.O_APPEND)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        os.truncate(self._at(path), length)
        return 0

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        os.fsync(fh)
        return 0

    def release(self, path: str, fh: int) -> int:
        os.close(fh)
        return 0

    def statfs(self, path: str) -> dict[str, int]:
        status = os.statvfs(self.backing)
        names = (
            "f_bavail",
            "f_bfree",
            "f_blocks",
            "f_bsize",
            "f_favail",
            "f_ffree",
            "f_files",
            "f_frsize",
            "f_namemax",
        )
        return {name: getattr(status, name) for name in names}


if __name__ == "__main__":
    Path(sys.argv[2]).mkdir(exist_ok=True)
    mfusepy.FUSE(DriveLike(sys.argv[1]), sys.argv[2], foreground=True, fsname="drive", subtype="drive", use_ino=True)

"""Write torch files with errors that name the cause."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

_FLUSH_BYTES = 256 << 20


def save(values: dict[str, Any], path: Path, check: Callable[[], None] = lambda: None) -> None:
    """Write `values` with torch.save.

    Args:
        check: called before each piece is written; may raise to stop.

    Raises:
        OSError: the file can't be written.
    """
    with open(path, "wb") as file:
        writer = _Writer(file, check)
        try:
            torch.save(values, writer)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise writer.error or error from error  # torch reports each failed write as `unexpected pos`


class _Writer:
    """A file for torch.save that keeps the first error and flushes to the disk as it grows.

    Without the flushing, the small files of an interrupted run would wait for gigabytes in the page cache.
    """

    def __init__(self, file: BinaryIO, check: Callable[[], None]) -> None:
        self._file, self._check = file, check
        self._unflushed = 0
        self.error: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            self._check()
            written = self._file.write(data)
            self._unflushed += written
            if self._unflushed > _FLUSH_BYTES:
                self.flush()
                os.fsync(self._file.fileno())
                self._unflushed = 0
            return written
        except BaseException as error:
            self.error = self.error or error
            raise

    def flush(self) -> None:
        self._file.flush()

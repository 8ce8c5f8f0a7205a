"""Scratch files: anonymous, deleted on close, with a real descriptor that native decoders can read."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from typing import BinaryIO, cast

_MAX_IN_MEMORY = 64 << 20


def scratch(size: int) -> BinaryIO:
    """Return an empty file for about `size` bytes.

    It is in the temporary folder if `size` is more than 64 MiB and there is room, else in memory.

    Raises:
        OSError: no descriptor or no space is left.
    """
    if sys.platform == "linux" and (size <= _MAX_IN_MEMORY or not _has_room(size)):
        return open(os.memfd_create("musicgen-clip"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="musicgen-"))


def _has_room(size: int) -> bool:
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free >= size
    except OSError:  # there is no writable folder
        return False


def filled(size: int, blocks: Iterable[bytes]) -> BinaryIO:
    """Return a scratch file that contains `blocks`, about `size` bytes in all, positioned at 0."""
    file = scratch(size)
    try:
        for block in blocks:
            file.write(block)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file

"""Scratch files: nameless, gone once closed, with a descriptor that decoders can read without Python's help."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from typing import BinaryIO, cast

_MAX_IN_MEMORY = 64 << 20


def scratch(size: int) -> BinaryIO:
    """An empty file to write and read, for about `size` bytes: in the temporary folder if it has more than 64 MiB and
    there is room, else in memory.

    Raises:
        OSError: no descriptor or no space is left.
    """
    if sys.platform == "linux" and (size <= _MAX_IN_MEMORY or not _has_room(size)):
        return open(os.memfd_create("musicgen-clip"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile(prefix="musicgen-"))


def _has_room(size: int) -> bool:
    try:
        return shutil.disk_usage(tempfile.gettempdir()).free >= size
    except OSError:  # there is no folder that can be written to
        return False


def filled(size: int, blocks: Iterable[bytes]) -> BinaryIO:
    """A scratch file that holds `blocks`, about `size` bytes in all; it and its descriptor stand at 0."""
    file = scratch(size)
    try:
        for block in blocks:
            file.write(block)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file

"""Distinguish damaged files from transient read errors: a retry helps only with the latter."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from musicgen_core.errors import ArchiveError
from musicgen_core.language import message, stored_message

DAMAGED = "damaged in the archive"
"""Prefix of the rejection reason of a damaged clip, which may be intact in another copy of the archive"""


class Unreadable(Exception):
    """Data that violates its format; the message says how."""


def is_damage(error: Exception) -> bool:
    """Return whether an error is caused by the data and not by reading it.

    bz2 and gzip raise a bare OSError for bad data. One with an errno (EIO, ESTALE, ENOSPC) is the system's, and
    subclasses such as TimeoutError are the network's.
    """
    if isinstance(error, Unreadable | tarfile.TarError | zlib.error | lzma.LZMAError | EOFError):
        return True
    return type(error) in (OSError, gzip.BadGzipFile) and getattr(error, "errno", None) is None


@contextmanager
def damage_named(archive_name: str) -> Iterator[None]:
    """Convert damage found within the block to an ArchiveError that names the archive."""
    try:
        yield
    except Exception as error:  # sorted by is_damage
        if not is_damage(error):
            raise
        raise ArchiveError(
            message(
                "{archive} can't be read as a zip or tar archive ({reason})",
                archive=archive_name,
                reason=stored_message(str(error)),
            ),
            message("Copy or pack the archive again"),
        ) from error

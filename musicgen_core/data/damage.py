"""Recognise files that can't be read: of a foreign kind or damaged, unlike transient errors, which a retry may end."""

from __future__ import annotations

import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from musicgen_core.errors import ArchiveError
from musicgen_core.language import message, stored_message

DAMAGED = "damaged in the archive"
"""Prefix of the rejection reason of a damaged clip, which may be intact in another copy of the archive"""

_SEVEN_ZIP, _RAR = b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL)
_REPACK = message("Unpack it, and pack the files as a zip or tar")


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


def recognise(head: bytes) -> tuple[str, str] | None:
    """Return (kind of file, advice) for the first bytes of a known foreign kind; None for any other."""
    if head.startswith(_SEVEN_ZIP):
        return message("it is a 7-Zip archive, which is not supported"), _REPACK
    if head.startswith(_RAR):
        return message("it is a RAR archive, which is not supported"), _REPACK
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return (
            message("it is a Git LFS pointer, not the file itself"),
            message("Run git lfs pull where it comes from"),
        )
    if head.startswith(b"/annex/objects/"):
        return (
            message("it is a git-annex pointer, not the file itself"),
            message("Run git annex get where it comes from"),
        )
    if _HTML.match(head.removeprefix(b"\xef\xbb\xbf")):
        return (
            message("it is an HTML page, such as one that asks for a login or tells of a limit"),
            message("Download the file again, logged in"),
        )
    return None

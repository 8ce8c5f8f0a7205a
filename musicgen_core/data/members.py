"""What archives of any kind share: clips, sidecar texts, limits against archive bombs, scratch files, and damage."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import sys
import tarfile
import tempfile
import threading
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, cast

from musicgen_core.errors import ArchiveError, ClipRejected
from musicgen_core.language import message, stored_message
from musicgen_core.texts import NUL, decode_text

if TYPE_CHECKING:
    from musicgen_core.config import ReadingSettings

BLOCK = 1 << 20
"""Bytes per copied block"""

NOT_A_FILE = message("not a regular file but a link or a device, which is never followed")

DAMAGED = "damaged in the archive"
"""Prefix of the rejection reason of a damaged clip, which may be intact in another copy of the archive"""

CLIP_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff")
"""Suffixes of clips, in any case"""

_MAX_SIDECAR = 1 << 20
_MAX_IN_MEMORY = 64 << 20
_APPLE_DOUBLE = b"\x00\x05\x16\x07"
_ALWAYS_ALLOWED = 256 << 20  # small archives of silence compress as well as bombs
_SEVEN_ZIP, _RAR = b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"
_HTML = re.compile(rb"\s*(<!--.*?-->\s*)*<(!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL)
_REPACK = message("Unpack it, and pack the files as a zip or tar")


@dataclass(frozen=True)
class Limits:
    """Limits against archive bombs.

    Attributes:
        max_clip_bytes: maximum unpacked size of a member; larger ones are rejected.
        max_ratio: maximum ratio of unpacked to packed size; an archive beyond it and beyond 256 MiB is refused.
    """

    max_clip_bytes: int = 2 << 30
    max_ratio: float = 200.0


def limits_of(settings: ReadingSettings) -> Limits:
    return Limits(round(settings.max_clip_gib * 2**30), settings.max_ratio)


@dataclass(frozen=True)
class Member:
    """A clip in an archive.

    Attributes:
        name: decoded path inside the archive.
        size: declared unpacked size in bytes.
        open: returns the whole member as a binary file with a real descriptor at position 0, to be closed by the
            caller. Call it at most once, from any thread, while the archive is open. Raises ClipRejected with the
            reason, ArchiveError if the rest of the archive is unreadable, OSError for transient read errors.
    """

    name: str
    size: int
    open: Callable[[], BinaryIO]


class Sidecar(NamedTuple):
    """Text file beside a clip: `suffix` is `.json` or `.txt`; `problem` says why the text can't be used, if so."""

    suffix: str
    text: str
    problem: str = ""


Sidecars = dict[str, tuple[Sidecar, ...]]
"""Sidecars by `sidecar_key`, with the `.json` of a clip first"""


class Archive(Protocol):
    """An open archive: a `ZipArchive` or a `TarArchive`."""

    @property
    def clip_count(self) -> int | None:
        """Return the number of clips; None for a tar, which has no directory."""

    def digest(self, stored_checksum: Callable[[], str | None]) -> str:
        """Return a hash of the content that doesn't depend on the file's name, location or timestamps.

        A zip's directory represents its content, with the size and CRC-32 of every member, and costs a few reads, also
        over the network. A tar has no directory, so all of it is read, unless the storage keeps a checksum.

        Args:
            stored_checksum: returns the storage's own checksum of the file, if it keeps one.
        """

    def clips(self) -> Iterator[Member]:
        """Yield every member whose name ends in one of `CLIP_SUFFIXES`, in the archive's order. Call it only once.

        Raises:
            ArchiveError: the archive is damaged, truncated, or a bomb.
        """

    def clip_names(self) -> Iterator[str]:
        """Yield the names of the clips, without keeping their content. Of a zip only the directory is read.

        Raises:
            ArchiveError: the archive is damaged, truncated, or a bomb.
        """

    def sidecars(self) -> Sidecars:
        """Return the `.json` and `.txt` members: all of a zip, or those of a tar that `clips()` has passed."""

    def read_sidecars(self) -> Sidecars:
        """Return all `.json` and `.txt` members; a tar is read whole.

        Raises:
            ArchiveError: the archive is damaged, truncated, or a bomb.
        """

    def count_damaged(self, names: Collection[str]) -> int:
        """Return how many of the named clips can't be read whole now.

        A fresh copy of a damaged zip may have the same digest, as its directory is the same. A tar has another digest,
        so it isn't read, and all named clips are counted as damaged.
        """


class Meter:
    """Thread-safe counter of unpacked bytes that refuses archive bombs."""

    def __init__(self, archive_name: str, archive_bytes: int, limits: Limits) -> None:
        self.limits = limits
        self._name = archive_name
        self._most = max(_ALWAYS_ALLOWED, limits.max_ratio * archive_bytes)
        self._unpacked = 0
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Count from 0 again, for another pass over the archive."""
        with self._lock:
            self._unpacked = 0

    def count(self, blocks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield blocks and count their bytes.

        Raises:
            ArchiveError: the total exceeds the limit.
        """
        for block in blocks:
            self.add(len(block))
            yield block

    def add(self, size: int) -> None:
        with self._lock:
            self._unpacked += size
        if self._unpacked > self._most:
            raise ArchiveError(
                message(
                    "{archive} unpacks to more than {ratio:g} times its own size",
                    archive=self._name,
                    ratio=self.limits.max_ratio,
                ),
                message("Raise the setting max_ratio if it holds what it should"),
            )

    def refuse_large(self, size: int) -> None:
        """Check the size of a clip.

        Raises:
            ClipRejected: a clip of `size` bytes exceeds the limit.
        """
        if size > self.limits.max_clip_bytes:
            raise ClipRejected(
                message(
                    "it unpacks to {size:,.2f} GiB, more than the setting max_clip_gib allows ({most:g})",
                    size=size / 2**30,
                    most=self.limits.max_clip_bytes / 2**30,
                )
            )


def is_clip(name: str, suffixes: tuple[str, ...] = CLIP_SUFFIXES) -> bool:
    """Return whether a name is that of a clip, also before or after a NUL, where other tools may not look."""
    return any(part.lower().endswith(suffixes) for part in name.split(NUL))


def scratch(size: int) -> BinaryIO:
    """Return an empty file for about `size` bytes, with a descriptor that native decoders can read; deleted on close.

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


def clip_file(size: int, blocks: Iterable[bytes]) -> BinaryIO:
    """Return a clip's content as a scratch file.

    Raises:
        ClipRejected: the content is not audio but macOS's metadata of a file.
    """
    file = filled(size, blocks)
    if os.pread(file.fileno(), len(_APPLE_DOUBLE), 0) == _APPLE_DOUBLE:
        file.close()
        raise ClipRejected(message("not audio but attributes of a file that macOS packed beside it (AppleDouble)"))
    return file


def sidecar_key(name: str) -> str:
    """Return a member's path without suffix, in NFC with `/`: equal for a clip and its sidecars."""
    return unicodedata.normalize("NFC", name.replace("\\", "/").rpartition(".")[0])


def is_sidecar(name: str) -> bool:
    return name.lower().endswith((".json", ".txt"))


def add_sidecar(sidecars: Sidecars, name: str, size: int, blocks: Iterable[bytes]) -> None:
    """Add a sidecar of `size` bytes, or the reason why it can't be read."""
    suffix, key = "." + name.lower().rpartition(".")[2], sidecar_key(name)
    sidecar = _read_sidecar(suffix, size, blocks)
    others = (other for other in sidecars.get(key, ()) if other.suffix != suffix)
    sidecars[key] = tuple(sorted((*others, sidecar)))


def _read_sidecar(suffix: str, size: int, blocks: Iterable[bytes]) -> Sidecar:
    if size > _MAX_SIDECAR:
        return Sidecar(suffix, "", f"has {size:,} bytes, more than the {_MAX_SIDECAR:,} that are read")
    try:
        return Sidecar(suffix, decode_text(b"".join(blocks)))
    except UnicodeDecodeError:
        return Sidecar(suffix, "", "is neither UTF-8 nor another encoding that is recognised: save it as UTF-8")
    except ClipRejected as error:
        return Sidecar(suffix, "", f"can't be read: {error}")


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
            message("it is an HTML page, such as one that asks for a login or reports a quota"),
            message("Download the file again, logged in"),
        )
    return None

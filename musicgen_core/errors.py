"""User-facing errors. Each says what was found, where, and what to do next."""

from __future__ import annotations

import errno
import re

from musicgen_core.escaping import printable
from musicgen_core.language import Message, message, say, translated


class MusicgenError(Exception):
    """An error that a person can act on.

    Args:
        found: the problem and its location, without a full stop at the end.
        next_step: what to do about it.
    """

    def __init__(self, found: str, next_step: str = "") -> None:
        super().__init__(found, next_step)  # both in `args`, so that the error survives pickling
        self.found = found
        self.next_step = next_step

    def __str__(self) -> str:
        return printable(f"{self.found}. {self.next_step}" if self.next_step else self.found)


def translated_error(error: MusicgenError) -> str:
    """Return an error in the user's language, or entirely in English if its finding has no translation."""
    if not isinstance(error.found, Message):
        return str(error)
    if not error.next_step:
        return printable(translated(error.found))
    return printable(say("{found}. {next_step}", found=error.found, next_step=error.next_step))


class ConfigError(MusicgenError):
    """Invalid settings; `found` lists every problem at once."""


class DeviceError(MusicgenError):
    """The requested device is missing or too small."""


class ArchiveError(MusicgenError):
    """An archive that is missing or can't be used."""


class ClipRejected(MusicgenError):
    """A clip that can't be used. The rest of its archive is processed."""


class MetadataError(MusicgenError):
    """A `metadata.jsonl` that can't be used."""


class StorageError(MusicgenError):
    """A storage that refuses access or doesn't respond.

    Attributes:
        code: the HTTP status, if any: 401 for credentials, 403 for a permission, 404 for the bucket.
    """

    def __init__(self, found: str, next_step: str = "", code: int | None = None) -> None:
        super().__init__(found, next_step)
        self.code = code


class TokensError(MusicgenError):
    """A directory of shards that can't be used."""


class ModelError(MusicgenError):
    """A model or a checkpoint of one that can't be used."""


class AdapterError(MusicgenError):
    """An adapter that can't be used."""


class RunDirectoryError(MusicgenError):
    """A run directory that can't be used as requested."""


class RunDirectoryUnavailable(RunDirectoryError):
    """A run directory that can't be used at the moment: another run is active in it, or its disk is full."""


class TrainingError(MusicgenError):
    """A training run that can't continue."""


class Cancelled(Exception):
    """The work was cancelled. Results finished before are kept."""


def is_refusal(error: BaseException) -> bool:
    """Return whether a run was refused for its parameters. Another error may be over at the next attempt."""
    refusals = (ConfigError, RunDirectoryError, AdapterError, DeviceError)
    return isinstance(error, refusals) and not isinstance(error, RunDirectoryUnavailable)


def reason_of(error: BaseException) -> str:
    """Return an error in readable form: `no space left on device: /data/latest.pt`, `ValueError: …`."""
    if isinstance(error, MusicgenError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror[:1].lower()}{error.strerror[1:]}{where}"
    return f"{type(error).__name__}: {error}"


_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), message("Make room on that disk, or give a location on another")),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), message("Change its permissions, or give another location")
    ),
    errno.EIO: message("Check the disk"),
}


def advice_on(error: BaseException) -> str | None:
    """Return advice on an error of a file or its disk; None for other errors."""
    return _ADVICE.get(error.errno or 0) if isinstance(error, OSError) and error.filename is not None else None


def without_number(text: str) -> str:
    """Return an operating system's error without its number, such as `[Errno 111]`."""
    return re.sub(r"\[Errno -?\d+\] ", "", text)


def raise_if_interrupted(error: BaseException) -> None:
    """Raise the interruption that an error hides, if any.

    Prefect's TerminationSignal is raised at an arbitrary point, and compiled code (pybind11, while a module is
    imported) turns it into an ImportError or a RuntimeError. Code that catches those would ignore SIGTERM.
    """
    behind, seen = [error], {id(error)}  # chains of causes may be cyclic
    while behind:
        reached = behind.pop()
        for cause in (reached.__cause__, reached.__context__):
            if cause is None or id(cause) in seen:
                continue
            if not isinstance(cause, Exception):
                raise cause
            seen.add(id(cause))
            behind.append(cause)

"""What a check found, and how to run checks that may hang or break."""

from __future__ import annotations

import contextvars
import os
import re
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from musicgen_core.errors import MusicgenError, without_number
from musicgen_core.language import message

T = TypeVar("T")
Level = Literal["ok", "warning", "problem"]

INSTALL = message("Install what pyproject.toml asks for: uv sync")
KEYS = ("WANDB_API_KEY", "HF_TOKEN", "PREFECT_API_KEY", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING")
"""Environment variables whose values are never shown."""


@dataclass(frozen=True)
class Finding:
    """One row of the doctor's table.

    Attributes:
        check: what was looked at.
        level: a warning doesn't stop the work that people come for; a problem does.
        found: what was found, and for a warning what works all the same.
        fix: what to do about it, a sentence with the command to run.
    """

    check: str
    level: Level
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Check(Generic[T]):
    """Something to look at, which may hang or break.

    Attributes:
        run: looks at it.
        subject: said first where it hangs or breaks, such as the URL.
        fix: what to do where it hangs.
    """

    name: str
    run: Callable[[], T]
    subject: str = ""
    fix: str = message("Run it again, and look for what is slow: disk, network or driver")

    def problem(self, found: str, fix: str) -> Finding:
        where = message("{subject}: {found}", subject=self.subject, found=found) if self.subject else found
        return Finding(self.name, "problem", where, fix)


class Attempt(threading.Thread, Generic[T]):
    """A check in a thread that nobody has to wait for, within the caller's context: Prefect's settings are there.

    Args:
        seconds: from now on. What takes longer is left alone and ends with the process.
    """

    def __init__(self, seconds: float, check: Check[T]) -> None:
        super().__init__(daemon=True)
        self.check, self._context = check, contextvars.copy_context()
        self._seconds, self._deadline = seconds, time.monotonic() + seconds
        self._answer: T | Finding
        self.start()

    def run(self) -> None:
        try:
            self._answer = self._context.run(self.check.run)
        except BaseException as error:  # whatever a broken driver or library raises is what is looked for
            self._answer = _explain(self.check, error)

    def finish(self) -> T | Finding:
        """Wait → what the check returned, or a problem if it failed or took too long."""
        self.join(max(0.0, self._deadline - time.monotonic()))
        silent = message("no answer within {seconds:g} seconds", seconds=self._seconds)
        return self.check.problem(silent, self.check.fix) if self.is_alive() else self._answer


def attempt_all(seconds: float, checks: Sequence[Check[T]]) -> list[T | Finding]:
    """Run checks at the same time, with `seconds` for all of them together."""
    attempts = [Attempt(seconds, check) for check in checks]
    return [one.finish() for one in attempts]


def attempt(seconds: float, check: Check[T]) -> T | Finding:
    return attempt_all(seconds, [check])[0]


def _explain(check: Check[T], error: BaseException) -> Finding:
    if isinstance(error, MusicgenError):
        fix = error.next_step
        if check.subject:  # which stands in `found` already
            fix = message("{fix} ({subject})", fix=fix, subject=check.subject)
        return Finding(check.name, "problem", error.found, fix)
    unknown = message("Unexpected error, probably a bug: report it, with this table")
    found = message("could not be checked ({reason})", reason=describe(error))
    return check.problem(found, INSTALL if isinstance(error, ImportError) else unknown)


def describe(error: BaseException) -> str:
    """An error in a line, without secrets."""
    # Redacted as a whole: of what is cut off afterwards a part would stay.
    text = redact(without_number(" ".join(str(error).split())))
    kind = type(error).__name__
    return f"{kind}: {text if len(text) <= 300 else f'{text[:300]}…'}" if text else kind


def redact(text: str) -> str:
    """A text in which no key and no password shows, not even where a library put it into an error's message."""
    text = re.sub(r"://[^/@\s]+@", "://…@", text)
    for secret in sorted(_forms(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def _secrets() -> Iterable[str]:
    yield from (os.environ.get(name, "") for name in KEYS)
    try:
        from prefect.settings import get_current_settings

        api = get_current_settings().api
    except Exception:  # settings that can't be read hold no secrets that could have been used
        return
    yield from (secret.get_secret_value() for secret in (api.key, api.auth_string) if secret is not None)


def _forms(secrets: Iterable[str]) -> set[str]:
    """How a secret may stand in a message: as it is, without the blanks around it, quoted, as an HTTP header."""
    forms: set[str] = set()
    for secret in secrets:
        plain = " ".join(secret.split())
        forms |= {secret, plain, repr(secret)[1:-1], b64encode(secret.encode()).decode()}
    return {form for form in forms if len(form) > 2}  # of less nothing could be read any more

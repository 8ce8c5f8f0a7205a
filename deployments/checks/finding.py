"""Findings of the doctor's checks, and running checks that may hang or raise."""

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
        check: name of the check.
        level: `problem` if the work that people come for is impossible; a `warning` doesn't prevent it.
        found: the result. A warning's also has what works nevertheless.
        fix: the remedy, a sentence with the command to run.
    """

    check: str
    level: Level
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Check(Generic[T]):
    """A check that may hang or raise.

    Attributes:
        run: performs the check.
        subject: prefix of the finding if the check hangs or raises, such as the URL.
        fix: remedy if the check hangs.
    """

    name: str
    run: Callable[[], T]
    subject: str = ""
    fix: str = message("Run it again, and look for what is slow: disk, network or driver")

    def problem(self, found: str, fix: str) -> Finding:
        where = message("{subject}: {found}", subject=self.subject, found=found) if self.subject else found
        return Finding(self.name, "problem", where, fix)


class Attempt(threading.Thread, Generic[T]):
    """A check in a daemon thread, run in the caller's context, which holds Prefect's settings.

    Args:
        seconds: time limit from now on. A check that exceeds it is abandoned; its thread ends with the process.
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
        except BaseException as error:  # any error of a broken driver or library is a finding
            self._answer = _explain(self.check, error)

    def finish(self) -> T | Finding:
        """Wait for the check and return its result, or a problem if it failed or timed out."""
        self.join(max(0.0, self._deadline - time.monotonic()))
        silent = message("no answer within {seconds:g} seconds", seconds=self._seconds)
        return self.check.problem(silent, self.check.fix) if self.is_alive() else self._answer


def attempt_all(seconds: float, checks: Sequence[Check[T]]) -> list[T | Finding]:
    """Run checks concurrently, with one time limit of `seconds` for all of them."""
    attempts = [Attempt(seconds, check) for check in checks]
    return [one.finish() for one in attempts]


def attempt(seconds: float, check: Check[T]) -> T | Finding:
    return attempt_all(seconds, [check])[0]


def _explain(check: Check[T], error: BaseException) -> Finding:
    if isinstance(error, MusicgenError):
        fix = error.next_step
        if check.subject:  # `found` contains it already
            fix = message("{fix} ({subject})", fix=fix, subject=check.subject)
        return Finding(check.name, "problem", error.found, fix)
    unknown = message("Unexpected error, probably a bug: report it, with this table")
    found = message("could not be checked ({reason})", reason=describe(error))
    return check.problem(found, INSTALL if isinstance(error, ImportError) else unknown)


def describe(error: BaseException) -> str:
    """Return an error as one line, without secrets."""
    # Redacted before it is cut: part of a secret at the cut would remain otherwise.
    text = redact(without_number(" ".join(str(error).split())))
    kind = type(error).__name__
    return f"{kind}: {text if len(text) <= 300 else f'{text[:300]}…'}" if text else kind


def redact(text: str) -> str:
    """Return a text without keys and passwords, which libraries may include in error messages."""
    text = re.sub(r"://[^/@\s]+@", "://…@", text)
    for secret in sorted(_forms(_secrets()), key=len, reverse=True):
        text = text.replace(secret, "…")
    return text


def _secrets() -> Iterable[str]:
    yield from (os.environ.get(name, "") for name in KEYS)
    try:
        from prefect.settings import get_current_settings

        api = get_current_settings().api
    except Exception:  # unreadable settings hold no secret that could have been used
        return
    yield from (secret.get_secret_value() for secret in (api.key, api.auth_string) if secret is not None)


def _forms(secrets: Iterable[str]) -> set[str]:
    """Return the forms in which a message may contain a secret: verbatim, stripped, URL-quoted, as an HTTP header."""
    forms: set[str] = set()
    for secret in secrets:
        plain = " ".join(secret.split())
        forms |= {secret, plain, repr(secret)[1:-1], b64encode(secret.encode()).decode()}
    return {form for form in forms if len(form) > 2}  # redacting shorter ones would make messages unreadable

"""Check that each storage location can be written to, read, listed and deleted from, with a small file."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from upath import UPath

from deployments.checks.finding import Check, Finding, attempt_all, describe
from musicgen_core import storage
from musicgen_core.data.archive import find_archives
from musicgen_core.errors import ArchiveError, ConfigError, MusicgenError
from musicgen_core.language import message

ARCHIVES = "archives"
STORAGE = message("storage")
SECONDS = 45.0
"""For all places together: gcsfs tries for 32 s before it says that there is no network or no right."""

CLEAN_UP_SECONDS = 5.0
_GOOGLE = ("gs://", "gcs://")
_CONTENT = "musicgen-flows doctor was here and can be deleted\n"
_LOG_IN = message(
    "Log in with gcloud auth application-default login, or export GOOGLE_APPLICATION_CREDENTIALS=KEY.json"
)
_STEPS = {"write": message("write"), "read": message("read"), "list": message("list"), "delete": message("delete")}
_RIGHTS = {"write": "create", "read": "get", "list": "list", "delete": "delete"}
"""Google Cloud Storage's name for the permission of each step, after `storage.objects.`"""


class _Failed(Exception):
    """A step that failed, and the storage's error, if there was one."""

    def __init__(self, step: str, reason: str, error: Exception | None = None) -> None:
        super().__init__(step, reason)
        self.step, self.reason, self.error = step, reason, error


def check_places(places: Mapping[str, str], others: Sequence[str] = ()) -> list[Finding]:
    """Check all locations concurrently.

    Args:
        places: locations by purpose. That of the archives is only read.
        others: locations without a purpose.
    """
    if not places and not others:
        found = message(
            "no locations to try: none is given, and no server has the variables musicgen_archives and so on"
        )
        fix = message("Name yours: uv run musicgen-flows doctor gs://bucket/folder, or --runs PATH")
        return [Finding(STORAGE, "warning", found, fix)]
    probes = [
        *(Probe(place, _named(name)) for name, place in places.items() if name != ARCHIVES),
        *(Probe(place, STORAGE) for place in dict.fromkeys(others)),
    ]
    checks = [_check(probe.name, probe.place, probe.run) for probe in probes]
    if ARCHIVES in places:
        place = places[ARCHIVES]
        checks.insert(0, _check(_named(ARCHIVES), place, partial(check_archives, place)))
    try:
        return attempt_all(SECONDS, checks)
    finally:
        left = [probe for probe in probes if probe.needs_cleaning]
        attempt_all(CLEAN_UP_SECONDS, [Check(probe.name, probe.clean_up) for probe in left])


def _named(place: str) -> str:
    return message("storage: {place}", place=place)


def _check(name: str, place: str, run: Callable[[], Finding]) -> Check[Finding]:
    is_google = place.startswith(_GOOGLE)
    look = f"gcloud storage ls {shlex.quote(place)}" if is_google else f"ls {shlex.quote(place)}"
    fix = message("See whether network, login and location work without this program: {command}", command=look)
    return Check(name, run, place, fix)


def check_archives(place: str) -> Finding:
    """Check that archives exist and can be read. Having none yet is a warning."""
    name = _named(ARCHIVES)
    path = _connect(place)
    try:
        archives = find_archives(place)
        with archives[0].open("rb") as file:
            file.read(4)
    except ArchiveError as error:
        found = message("{found}; training on tokens needs none", found=error.found)
        return Finding(name, "warning", found, error.next_step)
    except Exception as error:  # each kind of storage has its own
        return _explain(name, path, _failed("read", error))
    found = message("{place}: {number} of them, the first can be read", place=place, number=len(archives))
    return Finding(name, "ok", found)


class Probe:
    """A storage location, and a small file in it with a unique name.

    Attributes:
        needs_cleaning: whether the file may exist because `run` hangs or failed before deleting it.
    """

    def __init__(self, place: str, name: str) -> None:
        self.place, self.name = place, name
        self.needs_cleaning = False
        self._file = f".musicgen-doctor-{os.getpid()}-{os.urandom(4).hex()}"
        self._made: list[Path] = []

    def run(self) -> Finding:
        """Write, read, list and delete the file. Return the outcome, or the first step that failed.

        Raises:
            ConfigError: the location can't be reached.
        """
        place = _connect(self.place)
        failed = self._try_steps(place)
        if failed is not None:
            return _explain(self.name, place, failed)
        found = message("{place}: written, read, listed and deleted a small file", place=self.place)
        return Finding(self.name, "ok", found)

    def clean_up(self) -> None:
        """Delete what `run` may have left. Not part of `run`: gcsfs would wait as long again for a silent server."""
        with suppress(Exception):  # the problem is reported already
            (storage.as_path(self.place) / self._file).unlink(missing_ok=True)
        self._remove_folders()

    def _try_steps(self, place: UPath) -> _Failed | None:
        """Return the first step that failed, or None."""
        file = place / self._file
        self.needs_cleaning = True
        failed = None
        try:
            if storage.is_local(place):
                _do("write", lambda: self._make_folder(place))
            _do("write", lambda: storage.write_text(file, _CONTENT))
        except _Failed as error:
            return error
        try:
            _do("read", lambda: file.read_text(encoding="utf-8"), _CONTENT, message("it gives back other content"))
            pattern = f"{glob.escape(str(place))}/{self._file}*"
            otherwise = message("it does not show a file that was just written")
            _do("list", lambda: len(storage.glob(pattern)), 1, otherwise)
        except _Failed as error:
            failed = error
        try:
            _do("delete", lambda: file.unlink(missing_ok=True))
            _do("delete", file.exists, False, message("the file is still there"))
        except _Failed as error:
            failed = failed or error
            failed.reason = message("{reason}; {file} stays there", reason=failed.reason, file=file.name)
        self._remove_folders()
        self.needs_cleaning = False
        return failed

    def _make_folder(self, place: UPath) -> None:
        local = Path(str(place)).absolute()
        self._made = [folder for folder in (local, *local.parents) if not folder.exists()]
        storage.make_folder(place)

    def _remove_folders(self) -> None:
        for folder in self._made:
            with suppress(OSError):  # another program has written to it meanwhile
                folder.rmdir()


def _connect(place: str) -> UPath:
    """Return the path of a location whose server answers.

    Raises:
        ConfigError: the URL's protocol is unknown, no server answers, or there are no credentials.
    """
    try:
        path = storage.as_path(place)
        has_credentials = _has_credentials(path)
    except MusicgenError:
        raise
    except Exception as error:  # each kind of storage has its own
        raise ConfigError(
            message("{place} can't be reached ({reason})", place=place, reason=describe(error)),
            message("Check the address, the credentials and the network"),
        ) from error
    if has_credentials:
        return path
    found = message("{place} can't be used: there are no Google credentials on this machine", place=place)
    if given := os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        found = message(
            "{found}, and GOOGLE_APPLICATION_CREDENTIALS names {given}, which is none", found=found, given=given
        )
    raise ConfigError(found, _LOG_IN)


def _has_credentials(path: UPath) -> bool:
    """Return whether gcsfs has found credentials. Without them, it would retry for half a minute before it fails."""
    if path.protocol not in ("gs", "gcs") or os.environ.get("STORAGE_EMULATOR_HOST"):
        return True
    return path.fs.credentials.credentials is not None


def _do(step: str, action: Callable[[], object], expected: object = None, otherwise: str = "") -> None:
    try:
        result = action()
    except Exception as error:  # each kind of storage has its own
        raise _failed(step, error) from error
    if expected is not None and result != expected:
        raise _Failed(step, otherwise)


def _failed(step: str, error: Exception) -> _Failed:
    if isinstance(error, MusicgenError):
        return _Failed(step, error.found, error)
    reason = error.strerror if isinstance(error, OSError) and error.strerror else describe(error)
    return _Failed(step, reason, error)


def _is_login(error: Exception | None) -> bool:
    from google.auth.exceptions import GoogleAuthError

    return isinstance(error, GoogleAuthError) or getattr(error, "code", None) == 401


def _explain(name: str, place: UPath, failed: _Failed) -> Finding:
    if place.protocol in ("gs", "gcs"):
        return _explain_google(name, place, failed)
    step = _STEPS[failed.step]
    fix = message(
        "Name another location than {place}, or fix it: this user needs the right to {step} there",
        place=place,
        step=step,
    )
    if storage.is_local(place):
        fix = message("{fix} (ls -ld {path} shows whose it is)", fix=fix, path=shlex.quote(str(place)))
    found = message("{place}: can't {step} there ({reason})", place=place, step=step, reason=failed.reason)
    return Finding(name, "problem", found, fix)


def _explain_google(name: str, place: UPath, failed: _Failed) -> Finding:
    bucket = f"gs://{place.path.partition('/')[0]}"
    if _is_login(failed.error):
        found = message("{place}: Google refuses this machine's login ({reason})", place=place, reason=failed.reason)
        return Finding(name, "problem", found, _LOG_IN)
    if getattr(failed.error, "code", None) == 404:
        found = message(
            "{place}: there is no bucket {bucket}, or this account may not see it", place=place, bucket=bucket
        )
        fix = message("Create it, or correct the name: gcloud storage buckets create {bucket}", bucket=bucket)
        return Finding(name, "problem", found, fix)
    found = message(
        "{place}: can't {step} there, which needs the right {right} ({reason})",
        place=place,
        step=_STEPS[failed.step],
        right=f"storage.objects.{_RIGHTS[failed.step]}",
        reason=failed.reason,
    )
    fix = message(
        "Give this machine's account all four rights: gcloud storage buckets add-iam-policy-binding {bucket} "
        "--member=serviceAccount:ACCOUNT --role=roles/storage.objectUser",
        bucket=bucket,
    )
    return Finding(name, "problem", found, fix)

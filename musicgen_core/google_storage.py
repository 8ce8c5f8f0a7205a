"""Google Cloud Storage for storage.py: gcsfs with retries of transient errors and explanations of permanent ones.

Plain gcsfs waits for a response forever, gives up a multi-part upload whose response was lost, and reports a folder
that may not be listed as missing. Credentials are found as Google's own tools find them: those of `gcloud auth
application-default login`, GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from glob import has_magic
from pathlib import Path
from typing import Any

import aiohttp
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError, NonRetryableError, is_retriable
from google.api_core.exceptions import RetryError
from google.api_core.retry import AsyncRetry
from google.auth.exceptions import GoogleAuthError, TransportError

from musicgen_core.errors import StorageError
from musicgen_core.language import message

logger = logging.getLogger(__name__)

LISTING_S = 10.0
"""Lifetime of cached listings; others may write to the same bucket"""
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 16.0
"""Delay between two attempts, with exponential backoff"""
PART_BYTES = 16 << 20
"""Part size of uploads of 5 MiB or more; Google requires a multiple of 256 KiB"""
WHOLE_BYTES = 100 << 20
"""Size up to which a file is downloaded in one request; gcsfs reads larger ones in concurrent ranges"""
_UPLOADS = 3
_LOG_IN = message(
    "Log in with gcloud auth application-default login, or export GOOGLE_APPLICATION_CREDENTIALS=KEY.json"
)
_WITHOUT_BUCKET = re.compile(r"(^|/upload/storage/v1/)b/[^/]+/o(\?name=|$)")
"""Requests for which a 404 refers to the bucket: listings and the start of an upload"""
_READING = ("storage.objects.get", "storage.objects.list")
_Method = Callable[..., Awaitable[Any]]


class _UploadLost(Exception):
    """Google no longer knows a multi-part upload, or has received other parts than were sent."""


class _Transient:
    """Predicate for transient errors: whether a failed request may succeed on a retry."""

    def __init__(self, attempts: int) -> None:
        self.attempts_left = attempts
        self._was_refused = False

    def __call__(self, error: Exception) -> bool:
        if not self._is_transient(error):
            return False
        self.attempts_left -= 1
        return self.attempts_left > 0

    def _is_transient(self, error: Exception) -> bool:
        code = getattr(error, "code", None)
        if code == 401:
            return self._may_be_outdated(error)
        return isinstance(error, TimeoutError | TransportError) or (is_retriable(error) and code != 501)

    def _may_be_outdated(self, error: Exception) -> bool:
        """Return whether an expired token may be the cause; not if it has already been renewed once."""
        was_refused, self._was_refused = self._was_refused, True
        return is_retriable(error) and error.__cause__ is None and not was_refused


def _explained(method: _Method, attempt: str, which: int = 0) -> _Method:
    """Wrap a method of gcsfs so that it raises a StorageError where the user must act.

    Args:
        attempt: what the method does with a path, as a participle: `read`.
        which: index of that path among the arguments.
    """

    @wraps(method)
    async def explaining(self: GoogleStorage, *args: Any, **kwargs: Any) -> Any:
        try:
            return await method(self, *args, **kwargs)
        except Exception as error:  # sorted by _explain
            paths = self._strip_protocol(args[which] if len(args) > which else "")
            path = (paths[0] if isinstance(paths, list) else paths).rstrip("/")
            explained = _explain(error, path, attempt, self.credentials.credentials is not None)
            if explained is None:
                raise
            raise explained from error

    return explaining


def _explain(error: Exception, path: str, attempt: str, has_credentials: bool) -> StorageError | None:
    if isinstance(error, StorageError):  # one method calls another
        return None
    place, bucket = f"gs://{path}", f"gs://{path.partition('/')[0]}"
    cause = error.cause if isinstance(error, RetryError) else error
    reason = " ".join(f"{type(cause).__name__} {cause}".split())
    if isinstance(error, OSError) and str(error).startswith("Forbidden"):
        return _forbidden(str(error).partition("\n")[2], place, bucket, attempt)
    if isinstance(error, GoogleAuthError | NonRetryableError) or getattr(error, "code", None) == 401:
        reason = str(cause.__cause__ or cause)  # why a token could not be renewed
        who = message("Google asks for a login, and this machine has none")
        if has_credentials:
            who = message("Google refuses this machine's login")
        found = message(
            "{place} can't be {attempt}: {why} ({reason})", place=place, attempt=attempt, why=who, reason=reason
        )
        return StorageError(found, _LOG_IN, 401)
    if isinstance(error, FileNotFoundError) and _WITHOUT_BUCKET.search(str(error)):
        found = message(
            "{place} can't be {attempt}: there is no bucket {bucket}, or this account may not see it",
            place=place,
            attempt=attempt,
            bucket=bucket,
        )
        fix = message("Create it, or correct the name: gcloud storage buckets create {bucket}", bucket=bucket)
        return StorageError(found, fix, 404)
    if isinstance(error, RetryError | _UploadLost):
        found = message(
            "{place} can't be {attempt}: Google Cloud Storage did not do it after several attempts ({reason})",
            place=place,
            attempt=attempt,
            reason=reason,
        )
        return StorageError(found, message("Check the network, and run again: what is done is kept"))
    return None


def _forbidden(answer: str, place: str, bucket: str, attempt: str) -> StorageError:
    """Return the error for a 403, in whose message Google names the permission."""
    named = re.search(r"storage\.\w+\.\w+", answer)
    why = message("that is forbidden")
    if named:
        why = message("that needs the permission {permission}, which this account does not have", permission=named[0])
    role = "storage.objectViewer" if named and named[0] in _READING else "storage.objectUser"
    return StorageError(
        message(
            "{place} can't be {attempt}: {why} (Google says: {answer})",
            place=place,
            attempt=attempt,
            why=why,
            answer=answer,
        ),
        message(
            "Give the account the role {role} (to write: storage.objectUser): gcloud storage buckets "
            "add-iam-policy-binding {bucket} --member=serviceAccount:ACCOUNT --role=roles/{role}",
            role=role,
            bucket=bucket,
        ),
        403,
    )


class GoogleStorage(GCSFileSystem):
    """fsspec file system for gs://.

    Args (for each process in the environment: FSSPEC_GS='{"silence_s": 60}'):
        silence_s: a response without data for so many seconds is considered lost and requested again.
        request_s: time limit of one request, which sends at most 16 MiB or receives at most 100 MB.
        attempts: maximum attempts of a request with transient errors. Six add half a minute of delays.

    Raises (its methods):
        StorageError: access is refused, the bucket is missing, or all attempts failed; `code` tells them apart.
    """

    def __init__(
        self, *args: Any, silence_s: float = 30.0, request_s: float = 300.0, attempts: int = 6, **kwargs: Any
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=request_s, sock_connect=min(30.0, request_s), sock_read=silence_s)
        super().__init__(*args, **{"requests_timeout": timeout, "listings_expiry_time": LISTING_S, **kwargs})
        self.attempts = attempts

    async def _request(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        """Send one request, with retries of transient errors.

        The only private method of gcsfs that is overridden: its retries miss timeouts, repeat a refused login for half
        a minute, and can't be set. Nor could a middleware of aiohttp replace them (`session_kwargs`): it sees neither
        the renewal of a token nor a response that breaks off.
        """
        is_part = "upload_id=" in path
        if is_part and method == "DELETE":  # after a failed upload, whose parts Google also deletes automatically
            return 499, {}, None, b""
        try:
            return await self._tried(partial(self._answer, is_part), method, path, *args, **kwargs)
        except (HttpError, FileNotFoundError, ValueError) as error:
            if method == "DELETE" and isinstance(error, FileNotFoundError):
                return 204, {}, None, b""  # an earlier attempt whose response was lost may have deleted it
            if is_part and getattr(error, "code", None) != 401:
                raise _UploadLost(f"{type(error).__name__} {error}") from error
            raise

    async def _answer(self, is_part: bool, *args: Any, **kwargs: Any) -> Any:
        answer = await GCSFileSystem._request.__wrapped__(self, *args, **kwargs)  # without gcsfs's retries
        if is_part and answer[0] == 308 and "Range" not in answer[1]:  # gcsfs treats it as success
            raise aiohttp.ClientError("nothing of this part was kept")
        return answer

    async def _tried(self, request: _Method, *args: Any, **kwargs: Any) -> Any:
        def log(error: Exception) -> None:
            logger.info("asking Google Cloud Storage again after %s: %s", type(error).__name__, error)

        transient = _Transient(self.attempts)
        retry = AsyncRetry(transient, initial=FIRST_DELAY_S, maximum=LONGEST_DELAY_S, timeout=None, on_error=log)
        try:
            return await retry(request)(*args, **kwargs)
        except Exception as error:
            if transient.attempts_left:
                raise
            raise RetryError(f"{self.attempts} attempts failed", error) from error  # gcsfs doesn't retry this

    async def _download(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        if (await self._info(rpath))["size"] > WHOLE_BYTES:
            await super()._get_file(rpath, lpath, **kwargs)  # in ranges
        else:  # gcsfs would use a request of its own, which `_request` doesn't see
            Path(lpath).write_bytes(await self._cat_file(rpath))

    async def _upload(self, *args: Any, **kwargs: Any) -> Any:
        return await _restarted_if_lost(super()._put_file, *args, **{"chunksize": PART_BYTES, **kwargs})

    async def _write(self, *args: Any, **kwargs: Any) -> Any:
        return await _restarted_if_lost(super()._pipe_file, *args, **kwargs)

    # The methods of fsspec's interface for asynchronous file systems (fsspec.asyn.async_methods), which gcsfs
    # implements. They raise what a user should read: requests don't know what they are for.
    _info = _explained(GCSFileSystem._info, message("looked at"))
    _ls = _explained(GCSFileSystem._ls, message("listed"))
    _find = _explained(GCSFileSystem._find, message("listed"))
    _cat_file = _explained(GCSFileSystem._cat_file, message("read"))
    _get_file = _explained(_download, message("read"))
    _put_file = _explained(_upload, message("written"), which=1)
    _pipe_file = _explained(_write, message("written"))
    _cp_file = _explained(GCSFileSystem._cp_file, message("copied"))
    _rm_file = _explained(GCSFileSystem._rm_file, message("deleted"))

    async def _isfile(self, path: str) -> bool:
        """Return whether a file exists. fsspec's own takes any error, such as a missing permission, for no file."""
        try:
            return bool((await self._info(path))["type"] == "file")
        except FileNotFoundError:
            return False

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files. A single one is deleted without a prior listing, which needs a permission of its own."""
        if recursive or not isinstance(path, str) or has_magic(path):
            super().rm(path, recursive=recursive, maxdepth=maxdepth)
        else:
            self.rm_file(path)


async def _restarted_if_lost(upload: _Method, *args: Any, **kwargs: Any) -> Any:
    """Run an upload, and restart it from the beginning if Google has lost its parts."""
    for _ in range(_UPLOADS - 1):
        try:
            return await upload(*args, **kwargs)
        except _UploadLost as error:
            logger.info("uploading again from the beginning: %s", error)
    return await upload(*args, **kwargs)

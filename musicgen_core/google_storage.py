"""Google Cloud Storage as storage.py needs it: gcsfs, which tries passing troubles again and explains lasting ones.

Of itself gcsfs waits for an answer forever, gives up an upload of several parts whose answer was lost, and takes a
folder that it may not look at for one that isn't there. Credentials are found as Google's own programs find them: those
of `gcloud auth application-default login`, GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from glob import has_magic
from typing import Any

import aiohttp
from fsspec.asyn import sync_wrapper
from gcsfs.core import GCSFileSystem
from gcsfs.retry import HttpError, NonRetryableError, is_retriable
from google.api_core.exceptions import RetryError
from google.api_core.retry import AsyncRetry
from google.auth.exceptions import GoogleAuthError, TransportError

from musicgen_core.errors import StorageError
from musicgen_core.language import message

logger = logging.getLogger(__name__)

LISTING_S = 10.0
"""How long a listing is remembered; others may write to the same place."""
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 16.0
"""Between two attempts, which grow apart."""
PART_BYTES = 16 << 20
"""Of an upload of 5 MiB or more; a multiple of 256 KiB, says Google."""
_UPLOADS = 3
_LOG_IN = message(
    "Log in with gcloud auth application-default login, or export GOOGLE_APPLICATION_CREDENTIALS=KEY.json"
)
_WITHOUT_BUCKET = re.compile(r"(^|/upload/storage/v1/)b/[^/]+/o(\?name=|$)")
"""What was asked for when a 404 means the bucket: a listing, or the beginning of an upload."""
_READING = ("storage.objects.get", "storage.objects.list")
_Method = Callable[..., Awaitable[Any]]


class _UploadLost(Exception):
    """Google doesn't know an upload of several parts any more, or has other parts of it than were sent."""


class _Transient:
    """Whether what went wrong with one request may go right with the next."""

    def __init__(self, attempts: int) -> None:
        self.attempts_left = attempts
        self._was_refused = False

    def __call__(self, error: Exception) -> bool:
        if not self._is_passing(error):
            return False
        self.attempts_left -= 1
        return self.attempts_left > 0

    def _is_passing(self, error: Exception) -> bool:
        code = getattr(error, "code", None)
        if code == 401:
            return self._may_be_outdated(error)
        return isinstance(error, TimeoutError | TransportError) or (is_retriable(error) and code != 501)

    def _may_be_outdated(self, error: Exception) -> bool:
        """A token that ran out meanwhile is renewed by the next request; it isn't if it was renewed in vain."""
        was_refused, self._was_refused = self._was_refused, True
        return is_retriable(error) and error.__cause__ is None and not was_refused


def _explained(method: _Method, attempt: str, which: int = 0) -> _Method:
    """A method of gcsfs that raises a StorageError where a person must act.

    Args:
        attempt: what the method does with a path, as a participle: `read`.
        which: the place of that path among the arguments.
    """

    @wraps(method)
    async def explaining(self: GoogleStorage, *args: Any, **kwargs: Any) -> Any:
        try:
            return await method(self, *args, **kwargs)
        except Exception as error:  # sorted by _explain
            paths = self._strip_protocol(args[which] if len(args) > which else "")
            path = (paths[0] if isinstance(paths, list) else paths).rstrip("/")
            told = _explain(error, path, attempt, self.credentials.credentials is not None)
            if told is None:
                raise
            raise told from error

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
    """The error for a 403, in whose message Google names the permission."""
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
    """fsspec's file system for gs://.

    Args (for each process in the environment: FSSPEC_GS='{"silence_s": 60}'):
        silence_s: an answer that stops for so long is taken for lost, and asked for again.
        request_s: the longest that one request may take, of at most 16 MiB to Google or 100 MB from there.
        attempts: how often a request is made that fails by what may pass. Six take half a minute and their own time.

    Raises (its methods):
        StorageError: access is refused, the bucket is missing, or all attempts failed; `code` says which.
    """

    def __init__(
        self, *args: Any, silence_s: float = 30.0, request_s: float = 300.0, attempts: int = 6, **kwargs: Any
    ) -> None:
        timeout = aiohttp.ClientTimeout(total=request_s, sock_connect=min(30.0, request_s), sock_read=silence_s)
        super().__init__(*args, **{"requests_timeout": timeout, "listings_expiry_time": LISTING_S, **kwargs})
        self.attempts = attempts

    async def _request(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        """One request, tried again where that may help. In the place of gcsfs's own attempts, which miss timeouts."""
        is_part = "upload_id=" in path
        if is_part and method == "DELETE":  # after an upload failed: Google forgets its parts by itself, too
            return 499, {}, None, b""
        try:
            return await self._tried(partial(self._answer, is_part), method, path, *args, **kwargs)
        except (HttpError, FileNotFoundError, ValueError) as error:
            if method == "DELETE" and isinstance(error, FileNotFoundError):
                return 204, {}, None, b""  # an attempt whose answer was lost may have deleted it
            if is_part and getattr(error, "code", None) != 401:
                raise _UploadLost(f"{type(error).__name__} {error}") from error
            raise

    async def _answer(self, is_part: bool, *args: Any, **kwargs: Any) -> Any:
        answer = await GCSFileSystem._request.__wrapped__(self, *args, **kwargs)
        if is_part and answer[0] == 308 and "Range" not in answer[1]:  # which gcsfs takes for success
            raise aiohttp.ClientError("nothing of this part was kept")
        return answer

    async def _get_file_request(self, *args: Any, **kwargs: Any) -> Any:
        return await self._tried(partial(GCSFileSystem._get_file_request.__wrapped__, self), *args, **kwargs)

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
            raise RetryError(f"{self.attempts} attempts failed", error) from error  # which gcsfs does not try again

    async def _put_whole(self, *args: Any, **kwargs: Any) -> Any:
        return await _begun_again(super()._put_file, *args, **{"chunksize": PART_BYTES, **kwargs})

    async def _pipe_whole(self, *args: Any, **kwargs: Any) -> Any:
        return await _begun_again(super()._pipe_file, *args, **kwargs)

    async def _rm_one(self, path: Any, recursive: bool = False, **kwargs: Any) -> Any:
        if recursive or not isinstance(path, str) or has_magic(path):
            return await super()._rm(path, recursive=recursive, **kwargs)
        return await self._rm_file(path)  # without first asking what is there

    async def _isfile(self, path: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == "file")
        except FileNotFoundError:
            return False

    _info = _explained(GCSFileSystem._info, message("looked at"))
    _ls = _explained(GCSFileSystem._ls, message("listed"))
    _find = _explained(GCSFileSystem._find, message("listed"))
    _cat_file = _explained(GCSFileSystem._cat_file, message("read"))
    _get_file = _explained(GCSFileSystem._get_file, message("read"))
    _put_file = _explained(_put_whole, message("written"), which=1)
    _pipe_file = _explained(_pipe_whole, message("written"))
    _cp_file = _explained(GCSFileSystem._cp_file, message("copied"))
    _mv_file = _explained(GCSFileSystem._mv_file, message("moved"))
    _rm_file = _explained(GCSFileSystem._rm_file, message("deleted"))
    _rm = _explained(_rm_one, message("deleted"))
    mv_file = sync_wrapper(_mv_file)
    rm = sync_wrapper(_rm)


async def _begun_again(upload: _Method, *args: Any, **kwargs: Any) -> Any:
    """An upload; from its beginning, if what was sent of it is lost."""
    for left in reversed(range(_UPLOADS)):
        try:
            return await upload(*args, **kwargs)
        except _UploadLost as error:
            logger.info("uploading again from the beginning: %s", error)
            if not left:
                raise
    raise AssertionError("the last upload returns or raises")

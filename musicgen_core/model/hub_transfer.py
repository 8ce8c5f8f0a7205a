"""Transfer files into the Hugging Face cache: resume by ranges, retry transient errors, explain the others."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from musicgen_core.errors import ModelError, MusicgenError, without_number
from musicgen_core.language import message
from musicgen_core.model.hub_names import nearest
from musicgen_core.stages import mention
from musicgen_core.wording import sized

logger = logging.getLogger(__name__)
T = TypeVar("T")

MOST_ATTEMPTS = 6
"""Consecutive attempts without a received byte."""
FIRST_ATTEMPTS = 3
"""Attempts while the Hub has not answered at all: it may never, and the user waits."""
LONGEST_WAIT_SECONDS = 300.0
"""The longest wait that is accepted: the Hub's rate limits are reset after five minutes."""
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_pause = time.sleep
ABANDONED_SECONDS = 24 * 3600.0
_INCOMPLETE = ".incomplete"
_SHA256_DIGITS = 64

Count = Callable[[int, bool], None]
"""Called with a number of bytes, and whether they were on this machine before."""
Explain = Callable[[str, Exception, int], MusicgenError]


@dataclass(frozen=True)
class TransferProgress:
    """Progress of a transfer from or to the Hub.

    Attributes:
        done: bytes at the destination, including those that it had before.
        total: bytes of all files.
        bytes_per_sec: average speed of this transfer.
    """

    repo: str
    done: int
    total: int
    bytes_per_sec: float

    def __str__(self) -> str:
        return f"{sized(self.done)} of {sized(self.total)}, {sized(self.bytes_per_sec)}/s"


class Attempts:
    """Retries transient errors, with growing delays or those that the Hub requests.

    Args:
        few: make only one attempt, because there is an alternative.
        explain: returns the error to raise for a repository, the last error and the number of attempts; by default that
            of a download.
    """

    def __init__(self, repo: str, few: bool = False, explain: Explain | None = None) -> None:
        self._repo, self._few = repo, few
        self._explain = explain or (lambda repo, error, attempts: give_up(repo, error, attempts=attempts))
        self._failed = 0
        self._has_answered = False

    def succeeded(self) -> None:
        self._failed, self._has_answered = 0, True

    def of(self, function: Callable[[], T]) -> T:
        """Return the result of `function`, retrying transient errors.

        Raises:
            MusicgenError: a permanent error, or too many attempts: a ModelError, or what `explain` returned.
            OSError: an error of this machine, such as a full disk.
        """
        while True:
            try:
                result = function()
            except Exception as error:
                self.failed(error)
            else:
                self.succeeded()
                return result

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt, or raise the error.

        Raises:
            MusicgenError: see `of`.
            OSError: see `of`.
        """
        import httpx2

        if not isinstance(error, (httpx2.HTTPError, httpx2.StreamError)):
            if isinstance(error, (OSError, MemoryError)):
                raise error
            raise self._explain(self._repo, error, 1) from error
        response = getattr(error, "response", None)
        status = response.status_code if response is not None else None
        if status is not None and status not in _TRANSIENT:
            raise self._explain(self._repo, error, 1) from error
        self._failed += 1
        self._has_answered |= status is not None
        most = 1 if self._few else MOST_ATTEMPTS if self._has_answered else FIRST_ATTEMPTS
        wait = _asked_wait(response.headers) if response is not None else None
        if self._failed >= most or (wait or 0) > LONGEST_WAIT_SECONDS:
            raise self._explain(self._repo, error, self._failed) from error
        wait = wait if wait is not None else 2.0 ** (self._failed - 1)
        logger.warning("%s: %s; next attempt in %.0f s", self._repo, reason_of_hub(error), wait)
        mention(message("waiting {wait:.0f} s before the next request for {repo}", wait=wait, repo=self._repo))
        _pause(wait)


def _asked_wait(headers: object) -> float | None:
    """Return the delay in seconds that a response requests, or None."""
    from huggingface_hub.utils._http import _parse_retry_after, parse_ratelimit_headers

    asked = _parse_retry_after(headers)  # type: ignore[arg-type]
    if asked is not None:
        return float(asked)
    limit = parse_ratelimit_headers(headers)  # type: ignore[arg-type]
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


def reason_of_hub(error: Exception) -> str:
    """Return a short reason without URLs, because signed ones are secrets."""
    import httpx2
    from huggingface_hub import constants

    response = getattr(error, "response", None)
    if response is not None:
        status = f"{response.status_code} {response.reason_phrase}".rstrip()
        return message("the Hugging Face Hub answered {status}", status=status)
    if isinstance(error, httpx2.ConnectTimeout | httpx2.ConnectError):
        said = without_number(textwrap.shorten(str(error), 100))
        found = message("{hub} can't be reached", hub=constants.ENDPOINT)
        return message("{found} ({reason})", found=found, reason=said) if said else found
    if isinstance(error, httpx2.TimeoutException):
        return message("{hub} accepted the connection and did not answer in time", hub=constants.ENDPOINT)
    if isinstance(error, httpx2.RemoteProtocolError | httpx2.NetworkError | httpx2.StreamError):
        return message("the connection to the Hugging Face Hub was lost")
    kind = type(error).__name__
    return message("{hub} gave no answer of the Hub's kind ({kind})", hub=constants.ENDPOINT, kind=kind)


def give_up(repo: str, error: Exception, cache: Path | None = None, attempts: int = 1) -> ModelError:
    """Return an error that the user can act on."""
    from huggingface_hub import errors, get_token

    has_token = get_token() is not None
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ModelError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ModelError(
            message("no space left for {repo} in {cache}", repo=repo, cache=cache),
            message("Make room there, or set HF_HOME to a directory with more. What came so far is kept"),
        )
    if isinstance(error, OSError) and error.errno is not None and cache is not None:
        return ModelError(
            message("{repo} can't be written to {cache} ({strerror})", repo=repo, cache=cache, strerror=error.strerror),
            message("Set HF_HOME to a directory that can be written"),
        )
    if isinstance(error, errors.GatedRepoError):
        return ModelError(
            message(
                "{repo} is gated, and {value}",
                repo=repo,
                value=message("the account of HF_TOKEN has no access") if has_token else message("no HF_TOKEN is set"),
            ),
            message(
                "Ask for access on its page on the Hugging Face Hub{value}",
                value="" if has_token else message(", and set HF_TOKEN"),
            ),
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError) or status == 404:
        access = (
            message("private without access for HF_TOKEN") if has_token else message("private, and no HF_TOKEN is set")
        )
        return ModelError(
            message("{repo} is not on the Hugging Face Hub, or {access}", repo=repo, access=access),
            message("Did you mean {near}? Otherwise check the name and HF_TOKEN", near=near)
            if (near := nearest(repo))
            else message("Check the name and HF_TOKEN"),
        )
    if status in (401, 403):
        what = "HF_TOKEN" if has_token else message("access without HF_TOKEN")
        return ModelError(
            message("the Hugging Face Hub refuses {what} for {repo} ({status})", what=what, repo=repo, status=status),
            message("Set a valid one, or unset it: facebook's models need none")
            if has_token
            else message("Set HF_TOKEN"),
        )
    if isinstance(error, errors.HFValidationError):
        return ModelError(
            message("{repo} is no name on the Hugging Face Hub", repo=repo),
            message("Give USER/NAME, or a local path that exists"),
        )
    tried = f", {attempts} times in a row" if attempts > 1 else ""
    return ModelError(
        message(
            "{repo} can't be fetched from the Hugging Face Hub: {reason}{tried}",
            repo=repo,
            reason=reason_of_hub(error),
            tried=tried,
        ),
        message(
            "Run the same command again later: what came so far is kept. Or copy {name} from the cache of a machine "
            "that has it",
            name=f"models--{repo.replace('/', '--')}",  # not by `repo_folder_name`: "the user's name" is requested, too
        ),
    )


def bytes_here(blob: Path) -> int:
    """Return how many bytes of an unfinished transfer are on this machine."""
    try:
        return _part_of(blob).stat().st_size
    except OSError:
        return 0


def _part_of(blob: Path) -> Path:
    return blob.with_name(blob.name + _INCOMPLETE)


def transfer(repo: str, url: str, blob: Path, size: int, sha256: str | None, count: Count) -> None:
    """Download a file, which appears at `blob` once it is complete and has the right hash.

    Other processes that download the same file wait for this one.

    Args:
        blob: the path in the cache.
        size: bytes of the whole file.
        sha256: hash of its content, or None if unknown.
        count: called with bytes that are there, and whether they were there before.

    Raises:
        ModelError: it can't be downloaded.
        OSError: it can't be written.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    lock = blob.parent.parent.parent / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.is_file():
            count(size, True)
            return
        for abandoned in blob.parent.glob(f"{blob.name}.*{_INCOMPLETE}"):  # of huggingface_hub, which can't resume them
            abandoned.unlink(missing_ok=True)
        part = _part_of(blob)
        was_resumed = _receive(repo, url, part, size, count)
        if not _is_right(part, sha256):
            part.unlink()
            count(-size, False)
            if was_resumed:  # possibly from another version of the file
                _receive(repo, url, part, size, count)
            if not was_resumed or not _is_right(part, sha256):
                part.unlink(missing_ok=True)
                raise ModelError(
                    message(
                        "a file of {repo} was damaged on its way from the Hugging Face Hub (its SHA-256 is not "
                        "{sha256})",
                        repo=repo,
                        sha256=sha256,
                    ),
                    message("Run the same command again; if it stays so, ask who runs the proxy or mirror in between"),
                )
        part.replace(blob)


def _receive(repo: str, url: str, part: Path, size: int, count: Count) -> bool:
    """Append the missing bytes to `part`, and return whether it had some before."""
    attempts = Attempts(repo)
    with open(part, "ab") as file:
        if file.tell() > size:
            file.truncate(0)
        before = file.tell()
        count(before, True)

        def once() -> None:
            _append(url, file.fileno(), size, count, attempts.succeeded)

        if before < size:
            attempts.of(once)
        os.fsync(file.fileno())
    return before > 0


def _append(url: str, target: int, size: int, count: Count, on_bytes: Callable[[], None]) -> None:
    """Request the bytes after the end of the file `target`, once, and append them."""
    import httpx2
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    have = os.fstat(target).st_size
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        hf_raise_for_status(response)
        if have and response.status_code != 206:  # the server ignored the range and sends the whole file
            os.ftruncate(target, 0)
            count(-have, False)
            have = 0
        for chunk in response.iter_bytes():
            view = memoryview(chunk)[: size - have]
            while view:
                written = os.write(target, view)
                count(written, False)
                have, view = have + written, view[written:]
            on_bytes()
    if have < size:
        raise httpx2.RemoteProtocolError("the answer ended early")


def _is_right(part: Path, sha256: str | None) -> bool:
    if sha256 is None or len(sha256) != _SHA256_DIGITS:
        return True
    with open(part, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def delete_abandoned(blobs: Path) -> None:
    """Delete partial files that killed downloads left of other versions of a repository's files."""
    for part in blobs.glob(f"*{_INCOMPLETE}"):
        try:
            if time.time() - part.stat().st_mtime > ABANDONED_SECONDS:
                part.unlink()
        except OSError:  # another process was faster
            continue

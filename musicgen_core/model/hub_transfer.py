"""Transfer one file over HTTP into the Hugging Face cache, resuming by ranges."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.hub_errors import Attempts

ABANDONED_SECONDS = 24 * 3600.0
_INCOMPLETE = ".incomplete"
_SHA256_DIGITS = 64

Count = Callable[[int, bool], None]
"""Called with a number of bytes, and whether they were on this machine before."""


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
        repo: the repository, for messages.
        url: the file's URL.
        blob: the path in the cache.
        size: bytes of the whole file.
        sha256: hash of its content, or None if unknown.
        count: called for received bytes.

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

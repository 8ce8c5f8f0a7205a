"""Upload a directory to a model repository of the Hugging Face Hub.

The large files go first: through Xet, whose client stores a file in pieces and sends none that the Hub has, or, without
it (`HF_HUB_DISABLE_XET=1`), by LFS, which resumes after the last complete file. One commit then publishes all files, so
that nobody loads half an export. `HfApi.upload_folder` does the same, but reports its progress only to a terminal.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from musicgen_core.model.hub_client import uploading
from musicgen_core.model.hub_target import Target, asked
from musicgen_core.model.hub_transfer import TransferProgress
from musicgen_core.wording import sized

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

logger = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 60.0
REPORT_EVERY_SECONDS = 0.1
_REVISION = "main"
_STALE = re.compile(r"samples/(adapter|base)_\d+\.wav|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""Files of which an earlier export may have had more; all others of the repository are left alone"""


class UploadProgress(TransferProgress):
    """Progress of an upload."""


Listener = Callable[[UploadProgress], None]


@dataclass(frozen=True)
class Pushed:
    """A repository with uploaded files.

    Attributes:
        commit: the commit that published them, or the last one if nothing had changed.
    """

    repo: str
    url: str
    commit: str
    is_private: bool


def upload_folder(folder: Path, names: Sequence[str], target: Target, is_public: bool, listener: Listener) -> Pushed:
    """Create the repository if there is none, and make its files those of a directory.

    Args:
        folder: a local directory.
        names: paths of the files in it.
        target: a repository that was checked.
        is_public: visibility of a new repository.
        listener: called with the progress.

    Raises:
        ConfigError: the Hub refuses.
        StorageError: the Hub can't be reached, or the connection broke too often.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
    from huggingface_hub._commit_api import _fetch_upload_modes
    from huggingface_hub.utils._runtime import is_xet_available

    repo, api = target.repo, HfApi(endpoint=constants.ENDPOINT)
    additions = [CommitOperationAdd(name, folder / name) for name in names]
    counted = _Counted(repo, sum(one.upload_info.size for one in additions), listener)
    with uploading():
        if target.is_private is None:
            asked(repo, lambda: api.create_repo(repo, private=not is_public, exist_ok=True))
        there = asked(repo, lambda: api.list_repo_files(repo, revision=_REVISION))

        def ask_modes() -> None:
            headers, endpoint = api._build_hf_headers(), api.endpoint
            _fetch_upload_modes(additions, "model", repo, headers, _REVISION, endpoint)

        asked(repo, ask_modes)
        large = [one for one in additions if one._upload_mode == "lfs"]
        send = _send_by_xet if is_xet_available() else _send_by_lfs
        if large:
            asked(repo, lambda: send(api, repo, large, counted))
        counted.set(sum(one.upload_info.size for one in large))
        stale = [name for name in there if _STALE.fullmatch(name) and name not in names]
        deletions = [CommitOperationDelete(name) for name in stale]
        text = "Update the export" if target.is_private is not None else "Export a MusicGen"
        info = asked(
            repo, lambda: api.create_commit(repo, [*deletions, *additions], commit_message=text, revision=_REVISION)
        )
    counted.end()
    is_private = not is_public if target.is_private is None else target.is_private
    return Pushed(repo, target.url, info.oid, is_private)


def _send_by_xet(api: HfApi, repo: str, files: Sequence[CommitOperationAdd], counted: _Counted) -> None:
    """Upload large files through Xet, whose client retries, and sends nothing that is stored already."""
    import hf_xet  # type: ignore[import-untyped]
    import httpx2
    from huggingface_hub.utils import _xet

    headers = api._build_hf_headers()
    url = _xet.xet_connection_info_refresh_url(
        token_type=_xet.XetTokenType.WRITE, repo_id=repo, repo_type="model", revision=_REVISION, endpoint=api.endpoint
    )
    try:
        with _xet.get_xet_session().new_upload_commit(
            token_refresh_url=url,
            token_refresh_headers=headers,
            custom_headers=_xet.xet_headers_without_auth(headers),
            progress_callback=lambda group, _: counted.set(group.total_bytes_completed),
        ) as commit:
            handles = [
                commit.start_upload_file(str(one.path_or_fileobj), sha256=hf_xet.COMPUTE_SHA256) for one in files
            ]
    except (OSError, RuntimeError) as error:  # its own errors, which may hold signed URLs
        raise httpx2.WriteError("Xet failed") from error
    except BaseException:
        _xet.abort_xet_session()
        raise
    for file, handle in zip(files, handles, strict=True):
        file.upload_info.sha256 = bytes.fromhex(handle.result().xet_info.sha256)
        file._is_uploaded = True


def _send_by_lfs(api: HfApi, repo: str, files: Sequence[CommitOperationAdd], counted: _Counted) -> None:
    """Upload large files by LFS, several in parts; those that are stored already are skipped."""
    counted.set(0)
    with ExitStack() as opened:
        paths = [one.path_or_fileobj for one in files]
        try:
            for one, path in zip(files, paths, strict=True):
                one.path_or_fileobj = opened.enter_context(_CountedFile(str(path), counted.add))
            api.preupload_lfs_files(repo, files, revision=_REVISION, free_memory=False)
        except RuntimeError as error:
            raise error.__cause__ or error from error
        finally:
            for one, path in zip(files, paths, strict=True):
                one.path_or_fileobj = path


class _CountedFile(io.BufferedReader):
    """A file that reports the bytes read; going back, as a retry does, is reported as a negative number."""

    def __init__(self, path: str, add: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._add, self._reported = add, 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self._add(self.tell() - self._reported)
        self._reported = self.tell()
        return data


class _Counted:
    """Counts the bytes of an upload, and reports them to the listener as they go and to the log once a minute."""

    def __init__(self, repo: str, total: int, listener: Listener) -> None:
        self._repo, self._total, self._listener = repo, total, listener
        self._lock = threading.Lock()  # files are sent by several threads
        self._done = 0
        self._start = self._logged = time.monotonic()
        self._reported = 0.0
        logger.info("pushing %s to the Hugging Face Hub, %s", repo, sized(total))

    def add(self, count: int) -> None:
        with self._lock:
            self._set(self._done + count)

    def set(self, done: int) -> None:
        with self._lock:
            self._set(done)

    def end(self) -> None:
        self.set(self._total)
        logger.info("pushed %s, %s in %.0f s", self._repo, sized(self._total), time.monotonic() - self._start)

    def _set(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        progress = UploadProgress(self._repo, done, self._total, done / max(now - self._start, 1e-3))
        if now - self._reported >= REPORT_EVERY_SECONDS or done == self._total:
            self._reported = now
            self._listener(progress)
        if now - self._logged >= LOG_EVERY_SECONDS:
            self._logged = now
            logger.info("pushing %s: %s", self._repo, progress)

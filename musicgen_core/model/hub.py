"""Download files from the Hugging Face Hub into its cache on this machine, which other programs share.

huggingface_hub 2.4 deletes or abandons partial files when a download ends early. Here a download resumes where it
stopped, errors are retried for a bounded time, and complete files in the cache are used without asking the Hub.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from musicgen_core.errors import ModelError
from musicgen_core.language import message
from musicgen_core.model.hub_client import limit_waiting
from musicgen_core.model.hub_names import nearest
from musicgen_core.model.hub_transfer import Attempts, TransferProgress, bytes_here, delete_abandoned, give_up, transfer
from musicgen_core.wording import sized

logger = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 60.0
REPORT_EVERY_SECONDS = 0.1
REVISION = "main"


@dataclass(frozen=True)
class Wanted:
    """The files of a repository to download.

    Attributes:
        required: one entry per file: a name, or several names of which the first that the repository has is downloaded.
            A pattern must match a single file. They are added to the cache in this order, after the optional ones, so
            that the cache is complete once it has all of them.
        optional: patterns such as `text_encoder/*`.
    """

    required: tuple[str | tuple[str, ...], ...]
    optional: tuple[str, ...] = ()


T5 = Wanted(
    ("config.json", ("spiece.model", "tokenizer.json"), ("model.safetensors", "pytorch_model.bin")),
    ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
T5_TOKENIZER = Wanted((T5.required[1],), T5.optional)
CLAP = Wanted(
    (
        "config.json",
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json", "vocab.json"),
        ("model.safetensors", "pytorch_model.bin"),
    ),
    ("*config.json", "tokenizer.json", "vocab.json", "merges.txt", "special_tokens_map.json"),
)


class DownloadProgress(TransferProgress):
    """Progress of a download."""


Listener = Callable[[DownloadProgress], None]
_listener: ContextVar[Listener | None] = ContextVar("download_listener", default=None)


@contextmanager
def download_listener(listener: Listener) -> Iterator[None]:
    """Report the progress of downloads in this context to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def set_download_listener(listener: Listener) -> None:
    """Report the progress of downloads to `listener` until this context ends."""
    _listener.set(listener)


def fetch(repo: str, *wanted: Wanted, newest: bool = False) -> Path:
    """Return the directory that holds the wanted files of a repository, after downloading missing ones.

    Args:
        repo: `USER/NAME`, or `NAME` for the few repositories without a user.
        wanted: alternatives, of which the first that the repository has is downloaded.
        newest: ask the Hub for a newer revision first. If that fails, the cached one is used, with a warning.

    Raises:
        ModelError: the files can't be downloaded; says why and what to do.
    """
    from huggingface_hub import constants

    found = cached(repo, *wanted)
    if found is not None and (not newest or constants.is_offline_mode()):
        return found
    if constants.is_offline_mode():
        raise _offline(repo, wanted[0])
    try:
        listing = _list(repo, Attempts(repo, few=found is not None))
        return _fetch(listing, _choose(listing, wanted))
    except ModelError as error:
        if found is None:
            raise
        logger.warning("%s; the cached revision %s of %s is used", error.found, found.name[:12], repo)
        return found


def cached(repo: str, *wanted: Wanted) -> Path | None:
    """Return the directory in the cache that holds all required files, or None. Never asks the Hub."""
    folder = _folder(repo)
    try:
        snapshot = folder / "snapshots" / (folder / "refs" / REVISION).read_text().strip()
    except OSError:
        return None
    return snapshot if any(_is_complete(snapshot, one) for one in wanted) else None


def check(repo: str) -> None:
    """Check that the Hub has a repository, with a single request.

    Raises:
        ModelError: the Hub can't be reached, or has no such repository that may be read.
    """
    _list(repo, Attempts(repo, few=True))


def whoami() -> str:
    """Return the user that the token belongs to.

    Raises:
        ModelError: the Hub refuses it (the cause then has a response), or can't be reached.
    """
    from huggingface_hub import HfApi, constants

    limit_waiting()
    return Attempts("the user's name", few=True).of(lambda: str(HfApi(endpoint=constants.ENDPOINT).whoami()["name"]))


def _folder(repo: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser().absolute() / repo_folder_name(repo_id=repo, repo_type="model")


def _names(entry: str | tuple[str, ...]) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry


def _is_complete(snapshot: Path, wanted: Wanted) -> bool:
    return all(any(_is_there(snapshot, name) for name in _names(entry)) for entry in wanted.required)


def _is_there(snapshot: Path, name: str) -> bool:
    return len(list(snapshot.glob(name))) == 1 if "*" in name else (snapshot / name).is_file()


def _offline(repo: str, wanted: Wanted) -> ModelError:
    missing = ", ".join(" or ".join(_names(entry)) for entry in wanted.required)
    return ModelError(
        message(
            "{repo} is not complete in the cache {parent} (it takes {missing}), and HF_HUB_OFFLINE is set",
            repo=repo,
            parent=_folder(repo).parent,
            missing=missing,
        ),
        message("Did you mean {near}? Otherwise unset HF_HUB_OFFLINE", near=near)
        if (near := nearest(repo)) and not _folder(repo).exists()
        else message(
            "Unset HF_HUB_OFFLINE, or copy {name} from the cache of a machine that has it", name=_folder(repo).name
        ),
    )


@dataclass(frozen=True)
class _File:
    """A file on the Hub.

    Attributes:
        name: its path in the repository.
        etag: its name among the cache's blobs.
        sha256: hash of its content, which the Hub has for large files, or None.
    """

    name: str
    size: int
    etag: str
    sha256: str | None


@dataclass(frozen=True)
class _Listing:
    repo: str
    commit: str
    files: Mapping[str, _File] = field(repr=False)


def _list(repo: str, attempts: Attempts) -> _Listing:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.hf_api import RepoFile

    limit_waiting()
    api = HfApi(endpoint=constants.ENDPOINT)
    timeout = constants.HF_HUB_ETAG_TIMEOUT

    def ask() -> _Listing:
        info = api.model_info(repo, revision=REVISION, files_metadata=True, timeout=timeout)
        assert info.sha is not None, "every answer of the Hub names its commit"
        entries = [(one.rfilename, one.size, one.blob_id, one.lfs) for one in info.siblings or ()]
        if not entries or any(size is None or blob is None for _, size, blob, _ in entries):  # a mirror
            tree = api.list_repo_tree(repo, recursive=True, revision=info.sha)
            entries = [(one.path, one.size, one.blob_id, one.lfs) for one in tree if isinstance(one, RepoFile)]
        files = {
            name: _File(name, size or 0, lfs.sha256 if lfs else blob or "", lfs.sha256 if lfs else None)
            for name, size, blob, lfs in entries
        }
        return _Listing(repo, info.sha, files)

    return attempts.of(ask)


def _matches(name: str, pattern: str) -> bool:
    """Return whether a name matches a pattern whose `*` doesn't match `/`, as in `Path.glob`."""
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


def _first(names: Sequence[str], files: Mapping[str, _File]) -> str | None:
    for name in names:
        found = [file for file in files if _matches(file, name)]
        if len(found) == 1:
            return found[0]
    return None


def _choose(listing: _Listing, wanted: Sequence[Wanted]) -> list[_File]:
    """Return the files to download, in order."""
    for one in wanted:
        required = [_first(_names(entry), listing.files) for entry in one.required]
        if None not in required:
            optional = [name for name in listing.files if any(_matches(name, glob) for glob in one.optional)]
            names = [*(name for name in optional if name not in required), *filter(None, required)]
            return [listing.files[name] for name in names]
    lacking = " or ".join(" and ".join("/".join(_names(entry)) for entry in one.required) for one in wanted)
    some = ", ".join(sorted(listing.files)[:6]) or "nothing"
    raise ModelError(
        message(
            "{repo} on the Hugging Face Hub has no {lacking} (it has {some})",
            repo=listing.repo,
            lacking=lacking,
            some=some,
        ),
        message("Give another name, or a local directory"),
    )


def _fetch(listing: _Listing, files: Sequence[_File]) -> Path:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import _cache_commit_hash_for_specific_revision, _create_symlink

    folder = _folder(listing.repo)
    snapshot, blobs = folder / "snapshots" / listing.commit, folder / "blobs"
    missing = [file for file in files if not (snapshot / file.name).is_file()]
    to_fetch = {file.etag: file for file in missing if not (blobs / file.etag).is_file()}
    try:
        blobs.mkdir(parents=True, exist_ok=True)
        _check_room(listing.repo, blobs, list(to_fetch.values()))
        counted = _Counted(listing.repo, sum(file.size for file in to_fetch.values()))
        for file in to_fetch.values():
            url = hf_hub_url(listing.repo, file.name, revision=listing.commit)
            transfer(
                repo=listing.repo,
                url=url,
                blob=blobs / file.etag,
                size=file.size,
                sha256=file.sha256,
                count=counted.add,
            )
        for file in missing:
            pointer = snapshot / file.name
            pointer.parent.mkdir(parents=True, exist_ok=True)
            if not pointer.exists():
                _create_symlink(str(blobs / file.etag), str(pointer))
        _cache_commit_hash_for_specific_revision(str(folder), REVISION, listing.commit)
    except OSError as error:
        raise give_up(listing.repo, error, folder.parent) from error
    if to_fetch:
        counted.end()
        delete_abandoned(blobs)
    return snapshot


def _check_room(repo: str, blobs: Path, files: Sequence[_File]) -> None:
    needed = sum(file.size - bytes_here(blobs / file.etag) for file in files)
    free = shutil.disk_usage(blobs).free
    if needed > free:
        raise ModelError(
            message(
                "no space left for {repo}: {needed} are to be fetched into {parent}, where {free} are free",
                repo=repo,
                needed=sized(needed),
                parent=blobs.parent.parent,
                free=sized(free),
            ),
            message("Make room there, or set HF_HOME to a directory with more"),
        )


class _Counted:
    """Counts the bytes of a download, and reports them to the listener as they arrive and to the log once a minute."""

    def __init__(self, repo: str, total: int) -> None:
        self._repo, self._total, self._listener = repo, total, _listener.get()
        self._done = self._fetched = 0
        self._start = self._logged = self._reported = time.monotonic()
        if total:
            logger.info("fetching %s from the Hugging Face Hub, %s", repo, sized(total))

    def add(self, count: int, was_here: bool) -> None:
        """Count bytes; a negative count subtracts discarded ones."""
        self._done += count
        self._fetched += 0 if was_here else count
        now = time.monotonic()
        progress = DownloadProgress(
            self._repo, self._done, self._total, max(0, self._fetched) / max(now - self._start, 1e-3)
        )
        if self._listener is not None and (now - self._reported >= REPORT_EVERY_SECONDS or self._done == self._total):
            self._reported = now
            self._listener(progress)
        if now - self._logged >= LOG_EVERY_SECONDS:
            self._logged = now
            logger.info("fetching %s: %s", self._repo, progress)

    def end(self) -> None:
        seconds = time.monotonic() - self._start
        logger.info("fetched %s, %s in %.0f s", self._repo, sized(max(0, self._fetched)), seconds)

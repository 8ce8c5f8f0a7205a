"""Tokenize one archive, with retries and a persisted result."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.context import TaskRunContext

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import archive_stem
from musicgen_core.errors import Cancelled, DeviceError, ModelError, MusicgenError, reason_of
from musicgen_core.escaping import one_line
from musicgen_core.language import message
from musicgen_core.stages import announce, announce_torch
from musicgen_core.wording import counted
from tasks.progress import report
from tasks.tokenizing_log import ArchiveProgress

if TYPE_CHECKING:
    from musicgen_core.codec import Codec
    from musicgen_core.data.captions import Captions
    from musicgen_core.data.shards import ShardReport
    from musicgen_core.model.weights import BaseModel

_LASTING = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}
"""Errors of a folder that can't be written: not transient, so retries would not help"""
RETRY_SECONDS: list[float] = [2, 10, 60]
"""Approximate delay before each retry"""
_lock = threading.Lock()
_stopping: set[str] = set()


def stop_tokenizing(flow_run: str) -> None:
    """Stop the tokenizing tasks of a flow run in this process after their current clip."""
    _stopping.add(flow_run)


def _is_stopped(flow_run: str) -> bool:
    return flow_run in _stopping  # a function, because the task, pickled for Dask, would carry its own copy of the set


def _cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return the cache key: the archive's content, codec, settings, captions and the shard's location."""
    from musicgen_core.data.archive import content_digest
    from musicgen_core.model.compression import codec_identity
    from musicgen_core.model.weights import find_codec
    from musicgen_core.tokenizing import shard_fingerprint

    settings: TokenizeSettings = parameters["settings"]
    archive = storage.as_path(parameters["archive"])
    try:
        codec = codec_identity(find_codec(parameters["model"]))
        fingerprint = shard_fingerprint(content_digest(archive), codec, settings, parameters["limit"])
        metadata = storage.content_sha256(storage.as_path(parameters["metadata"])) if parameters["metadata"] else ""
    except (MusicgenError, OSError):
        return None  # the task itself meets the same error, and reports it
    parts = [fingerprint, metadata, settings.model_dump_json(), parameters["tokens"], archive_stem(archive)]
    return f"tokenize-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


def concerns_all(error: BaseException) -> bool:
    """Return whether an error concerns all archives, such as a missing model or GPU, or a full disk."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return is_full or isinstance(error, (ModelError, DeviceError)) or type(error).__name__ == "AcceleratorError"


def _may_help(task: Any, run: Any, state: Any) -> bool:
    """Return whether to retry: after transient errors of storage or memory, not after permanent ones."""
    error = state.result(raise_on_failure=False)
    is_lasting = isinstance(error, (MusicgenError, Cancelled)) or getattr(error, "errno", None) in _LASTING
    if is_lasting or concerns_all(error):
        return False
    if run.run_count <= len(RETRY_SECONDS):
        seconds = RETRY_SECONDS[run.run_count - 1]
        announce(
            message(
                "{task}: {reason}; trying again in about {seconds:g} s",
                task=run.name,
                reason=reason_of(error),
                seconds=seconds,
            )
        )
    return True


@task(
    task_run_name="tokenize-{stem}",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_jitter_factor=0.5,
    retry_condition_fn=_may_help,
    persist_result=True,
    cache_key_fn=_cache_key,
)
def tokenize_archive(
    archive: str,
    stem: str,
    tokens: str,
    model: str,
    settings: TokenizeSettings,
    device: str = "auto",
    metadata: str | None = None,
    limit: int | None = None,
    flow_run: str = "",
) -> ShardReport:
    """Tokenize one archive into one shard of codes."""
    from musicgen_core.tokenizing import Counts, Tokenizer

    tokenizer = Tokenizer(_codec(model, device), storage.as_path(tokens), settings, _captions(metadata, settings))

    def on_clip(counts: Counts) -> None:
        report(ArchiveProgress(stem, counts.rows, counts.rejected, counts.total))

    result = tokenizer.tokenize(storage.as_path(archive), limit, on_clip, cancelled=lambda: _is_stopped(flow_run))
    logger = get_run_logger()
    logger.debug(  # the run's table and its line a minute show it
        "%s: %s, %.0f s of audio, %d rejected",
        stem,
        counted(result.clips, "clip"),
        result.audio_seconds,
        len(result.rejected),
    )
    if result.rejected:  # one line per archive: many archives may have thousands
        some = "; ".join(f"{one_line(entry.clip)}: {entry.reason}" for entry in result.rejected[:3])
        logger.warning("%s: rejected %s%s", stem, some, " …" if len(result.rejected) > 3 else "")
    return result


def check_codec(model: str, device: str) -> None:
    """Load the codec that tasks in this process will use.

    Raises:
        ModelError: the codec can't be loaded.
        DeviceError: the device can't be used.
    """
    announce_torch()
    _codec(model, device)


def _codec(model: str, device: str) -> Codec:
    from musicgen_core.model.compression import codec_identity
    from musicgen_core.model.weights import find_codec

    with _lock:  # tasks start concurrently, and share one codec
        found = find_codec(model)
        return _load_codec(found, codec_identity(found), device)


@lru_cache(maxsize=1)
def _load_codec(model: BaseModel, _identity: str, device: str) -> Codec:
    from musicgen_core.codec import Codec
    from musicgen_core.devices import pick_device

    return Codec(model, pick_device(device))


def _captions(metadata: str | None, settings: TokenizeSettings) -> Captions | None:
    if metadata is None:
        return None
    path = storage.as_path(metadata)
    with _lock:
        return _load_captions(metadata, storage.content_sha256(path), settings)


@lru_cache(maxsize=2)
def _load_captions(metadata: str, _content: str, settings: TokenizeSettings) -> Captions:
    from musicgen_core.data.captions import load_captions

    return load_captions(storage.as_path(metadata), settings)

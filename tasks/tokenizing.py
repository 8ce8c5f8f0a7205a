"""Tokenize one archive, with retries and a persisted result."""

from __future__ import annotations

import hashlib
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.context import TaskRunContext

from musicgen_core import storage
from musicgen_core.data.archive import archive_stem
from musicgen_core.errors import Cancelled, MusicgenError
from tasks.progress import Update, report

if TYPE_CHECKING:
    from musicgen_core.codec import Codec
    from musicgen_core.data.captions import Captions
    from musicgen_core.data.shards import ShardReport

_lock = threading.Lock()
_stopping: set[str] = set()


def stop_tokenizing(flow_run: str) -> None:
    """Make the tokenizing tasks of a flow run in this process end after their current clip."""
    _stopping.add(flow_run)


def _cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """What the result depends on: the archive's content, codec, captions, limit, and where the shard goes."""
    from musicgen_core.codec import codec_identity
    from musicgen_core.model.weights import find_model
    from musicgen_core.tokenizing import shard_fingerprint

    try:
        codec = codec_identity(find_model(parameters["model"]))
        fingerprint = shard_fingerprint(storage.as_path(parameters["archive"]), codec, parameters["limit"])
        captions = _digest(parameters["metadata"])
    except (MusicgenError, OSError):
        return None  # the task itself meets the same error, and says it well
    parts = f"{fingerprint}|{captions}|{parameters['tokens']}|{archive_stem(storage.as_path(parameters['archive']))}"
    return f"tokenize-{hashlib.sha256(parts.encode()).hexdigest()}"


def _digest(metadata: str | None) -> str:
    return hashlib.sha256(storage.as_path(metadata).read_bytes()).hexdigest() if metadata else ""


def _may_help(task: Any, run: Any, state: Any) -> bool:
    """Try again after trouble with storage or memory, not after a mistake that will be the same next time."""
    return not isinstance(state.result(raise_on_failure=False), (MusicgenError, Cancelled))


@task(
    task_run_name="tokenize-{stem}",
    retries=3,
    retry_delay_seconds=[2, 10, 60],
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
    device: str = "auto",
    metadata: str | None = None,
    limit: int | None = None,
    flow_run: str = "",
) -> ShardReport:
    """Turn one archive into one shard of codes."""
    from musicgen_core.tokenizing import Tokenizer

    tokenizer = Tokenizer(_codec(model, device), storage.as_path(tokens), _captions(metadata, _digest(metadata)))

    def on_clip(done: int, rejected: int) -> None:
        report(Update("tokenize", stem, done + rejected, None, f"{rejected} rejected" if rejected else ""))

    result = tokenizer.tokenize(storage.as_path(archive), limit, on_clip, cancelled=lambda: flow_run in _stopping)
    report(Update("tokenize", stem, result.clips + len(result.rejected), result.clips + len(result.rejected)))
    logger = get_run_logger()
    logger.info(
        "%s: %d clips, %.0f s of audio, %d rejected", stem, result.clips, result.audio_seconds, len(result.rejected)
    )
    for rejection in result.rejected[:20]:
        logger.warning("%s: rejected %s: %s", stem, rejection.clip, rejection.reason)
    return result


def _codec(model: str, device: str) -> Codec:
    with _lock:  # several tasks start at once, and one codec serves all
        return _load_codec(model, device)


@lru_cache(maxsize=1)
def _load_codec(model: str, device: str) -> Codec:
    from musicgen_core.codec import Codec
    from musicgen_core.devices import pick_device
    from musicgen_core.model.weights import find_model

    return Codec(find_model(model), pick_device(device))


@lru_cache(maxsize=2)
def _captions(metadata: str | None, _content: str) -> Captions | None:
    from musicgen_core.data.captions import load_captions

    return load_captions(storage.as_path(metadata)) if metadata else None

"""Tokenize one archive, with retries and a persisted result; remove near duplicates from all shards."""

from __future__ import annotations

import hashlib
import json
import threading
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task
from prefect.context import TaskRunContext

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import archive_stem
from musicgen_core.errors import MusicgenError
from musicgen_core.stages import announce_torch
from tasks.archive_tasks import RETRY_SECONDS, archive_task, is_stopped, log_result, may_help, progress_of

if TYPE_CHECKING:
    from musicgen_core.codec import Codec
    from musicgen_core.data.captions import Captions
    from musicgen_core.data.shards import ShardReport
    from musicgen_core.model.weights import BaseModel
    from musicgen_core.separation.clips import Separation
    from musicgen_core.separation.separator import Separator

_lock = threading.Lock()


def _cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return the cache key: the archive's content, models, settings, captions and the shard's location."""
    from musicgen_core.data.archive import content_digest
    from musicgen_core.melody import chroma_identity
    from musicgen_core.model.compression import codec_identity
    from musicgen_core.model.weights import find_codec
    from musicgen_core.separation.settings import separating_option
    from musicgen_core.separation.weights import find_separator, separator_identity
    from musicgen_core.tokenizing import shard_fingerprint

    settings: TokenizeSettings = parameters["settings"]
    archive = storage.as_path(parameters["archive"])
    try:
        model = find_codec(parameters["model"])
        option = separating_option(settings.remove_vocals, settings.separate_melody)
        identity = separator_identity(find_separator(option)) if option else ""
        codec, separator = codec_identity(model), identity if settings.remove_vocals else ""
        chroma = [chroma_identity(identity if settings.separate_melody else "")] if model.chroma_frames else []
        digest, limit = content_digest(archive), parameters["limit"]
        fingerprint = shard_fingerprint(digest, codec, settings, limit, separator=separator)
        metadata = storage.content_sha256(storage.as_path(parameters["metadata"])) if parameters["metadata"] else ""
    except (MusicgenError, OSError):
        return None  # the task itself meets the same error, and reports it
    # Results that earlier versions persisted have no setting of what to leave out. The identities stand for separating.
    unset = {"remove_vocals", "separate_melody"} | (set() if settings.exclude else {"exclude"})
    values = settings.model_dump_json(exclude=unset)
    parts = [fingerprint, metadata, values, parameters["tokens"], archive_stem(archive), *chroma]
    return f"tokenize-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


@archive_task("tokenize", _cache_key)
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
    from musicgen_core.tokenizing import Tokenizer

    tokenizer = Tokenizer(
        codec=_codec(model, device),
        tokens=storage.as_path(tokens),
        settings=settings,
        metadata=_captions(metadata, settings),
        separation=_separation(device, settings),
    )
    result = tokenizer.tokenize(
        storage.as_path(archive), limit, progress_of(stem), cancelled=lambda: is_stopped(flow_run)
    )
    get_run_logger().debug("%s: %.0f s of audio", stem, result.audio_seconds)
    log_result(stem, result)
    return result


@task(
    task_run_name="exclude-near-duplicates",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    retry_condition_fn=may_help,
    persist_result=False,
)
def exclude_near_duplicates(tokens: str, model: str) -> None:
    """Remove near duplicates of earlier clips from the shards in a directory."""
    from musicgen_core.model.compression import code_vectors, codec_identity
    from musicgen_core.model.weights import find_codec
    from musicgen_core.tokenizing import exclude_duplicates

    codec = find_codec(model)
    exclude_duplicates(storage.as_path(tokens), codec_identity(codec), partial(code_vectors, codec))


def load_models(model: str, device: str, settings: TokenizeSettings) -> None:
    """Load the codec that tasks in this process will use, and the separator if they need it.

    Raises:
        ConfigError: Demucs is not installed, or melodies are to be separated for a model that takes none.
        ModelError: a model can't be loaded.
        DeviceError: the device can't be used.
    """
    announce_torch()
    from musicgen_core.tokenizing import check_separates_melody

    codec = _codec(model, device)
    if settings.separate_melody:
        check_separates_melody(codec)
    _separation(device, settings)


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


def _separation(device: str, settings: TokenizeSettings) -> Separation | None:
    from musicgen_core.separation.clips import Separation
    from musicgen_core.separation.separator import VOCALS
    from musicgen_core.separation.settings import separating_option
    from musicgen_core.separation.weights import find_separator, separator_identity

    option = separating_option(settings.remove_vocals, settings.separate_melody)
    if option is None:
        return None
    with _lock:
        directory = find_separator(option)
        separator = _load_separator(directory, separator_identity(directory), device)
    return Separation(separator, VOCALS if settings.remove_vocals else frozenset(), settings.separate_melody)


@lru_cache(maxsize=1)
def _load_separator(directory: Path, _identity: str, device: str) -> Separator:
    from musicgen_core.devices import pick_device
    from musicgen_core.separation.separator import Separator

    return Separator(directory, pick_device(device))


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

"""Measure the clips of one archive for their captions, with retries and a persisted result."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from prefect.context import TaskRunContext

from musicgen_core import storage
from musicgen_core.config import ReadingSettings
from musicgen_core.errors import MusicgenError
from musicgen_core.stages import announce_torch
from tasks.archive_tasks import archive_task, is_stopped, log_result, progress_of

if TYPE_CHECKING:
    from musicgen_core.captioning.measuring import Measurer
    from musicgen_core.captioning.metadata import MeasuredArchive
    from musicgen_core.captioning.taggers import ChosenTagger

_lock = threading.Lock()


@dataclass(frozen=True)
class CaptionResult:
    """The result of a `caption-archives` run.

    Attributes:
        metadata: the location of `metadata.jsonl`.
        archives: number of archives that were measured, or had captions already.
        new, replaced, kept, missing: clips whose description was composed, was composed in place of another, was there
            already, and is missing as nothing is known.
        rejected: clips that can't be used, with archive and reason.
        failed: reasons of the failed archives, by path.
        remarks: sentences on files that were left out.
        page: path of the page of the clips; empty without clips.
    """

    metadata: str
    archives: int
    new: int
    replaced: int
    kept: int
    missing: int
    rejected: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    page: str = ""

    @property
    def clips(self) -> int:
        """Return the number of clips that can be used."""
        return self.new + self.replaced + self.kept + self.missing


def _cache_key(context: TaskRunContext, parameters: dict[str, Any]) -> str | None:
    """Return the cache key: the archive's content, how it is read, and the programs that measure."""
    from musicgen_core.captioning.versions import measured_by
    from musicgen_core.data.archive import content_digest

    try:
        digest = content_digest(storage.as_path(parameters["archive"]))
    except (MusicgenError, OSError):
        return None  # the task itself meets the same error, and reports it
    reading: ReadingSettings = parameters["reading"]
    parts = [
        digest,
        reading.model_dump_json(),
        parameters["limit"],
        parameters["stem"],
        measured_by(parameters["tagger"].name),
    ]
    return f"caption-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"


@archive_task("caption", _cache_key)
def measure_clips(
    archive: str,
    stem: str,
    reading: ReadingSettings,
    tagger: ChosenTagger,
    device: str = "auto",
    limit: int | None = None,
    flow_run: str = "",
) -> MeasuredArchive:
    """Measure tags, tempo, key, loudness and speech of each clip of an archive."""
    from musicgen_core.captioning.archive import measure_archive

    result = measure_archive(
        archive=storage.as_path(archive),
        measurer=load_measurer(device, tagger),
        settings=reading,
        limit=limit,
        on_clip=progress_of(stem),
        cancelled=lambda: is_stopped(flow_run),
    )
    log_result(stem, result)
    return result


def load_measurer(device: str, tagger: ChosenTagger) -> Measurer:
    """Return the measurer that all tasks of this process share.

    Raises:
        ModelError: a network's weights are missing or damaged.
        DeviceError: the device can't be used.
    """
    announce_torch()
    with _lock:  # tasks start concurrently
        return _load(device, tagger)


@lru_cache(maxsize=1)
def _load(device: str, tagger: ChosenTagger) -> Measurer:
    from musicgen_core.captioning.clap import ClapTagger
    from musicgen_core.captioning.measuring import Measurer
    from musicgen_core.devices import pick_device

    chosen = pick_device(device)
    return Measurer(chosen, ClapTagger(tagger, chosen) if tagger.clap else None)

"""Measure all clips of an archive."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import islice

from upath import UPath

from musicgen_core.captioning.measuring import Measurer
from musicgen_core.captioning.metadata import MeasuredArchive, MeasuredClip
from musicgen_core.config import ReadingSettings
from musicgen_core.data.archive import ArchiveFile
from musicgen_core.data.audio import DecodedClip
from musicgen_core.data.caption_fields import CONFIDENCE, DURATION, MetadataEntry
from musicgen_core.data.captions import Captioner
from musicgen_core.data.decoding import Counts, OnClip, decoded_clips
from musicgen_core.data.members import limits_of, sidecar_key
from musicgen_core.data.shards import Rejected
from musicgen_core.errors import Cancelled, ClipRejected
from musicgen_core.wording import counted


def measure_archive(
    archive: UPath,
    measurer: Measurer,
    settings: ReadingSettings,
    limit: int | None = None,
    on_clip: OnClip = lambda counts: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> MeasuredArchive:
    """Measure the clips of an archive. Clips that tokenizing rejects are rejected here, too.

    Args:
        archive: a zip or tar, local or remote.
        settings: how to read archives.
        limit: maximum number of clips; None for all.
        on_clip: called before the first and after each clip.
        cancelled: polled after each clip, and while a native decoder works on one.

    Raises:
        ArchiveError: the archive can't be read.
        Cancelled: `cancelled` returned True.
        OSError: storage failed; a retry may help.
    """
    found: list[tuple[str, dict[str, object]]] = []
    rejected: list[Rejected] = []
    limits = limits_of(settings)
    with ArchiveFile(archive, limits, settings.name_encoding) as file, file.staged() as (_, opened):
        total = opened.clip_count if limit is None or opened.clip_count is None else min(limit, opened.clip_count)
        on_clip(Counts(0, 0, total))
        with closing(decoded_clips(islice(opened.clips(), limit), limits.max_clip_bytes, cancelled)) as decoded:
            keyed = (((name, _seconds(clip)), clip) for name, clip in decoded)
            for (name, seconds), fields in measurer.measure(keyed):
                if cancelled():
                    done = counted(len(found) + len(rejected), "clip")
                    raise Cancelled(f"captioning {archive.name} was cancelled after {done}")
                if isinstance(fields, ClipRejected):
                    rejected.append(Rejected(name, str(fields)))
                else:
                    found.append((name, _with_duration(fields, seconds)))
                on_clip(Counts(len(found), len(rejected), total))
        captioner, sidecars = Captioner(), opened.sidecars()
        clips = [
            MeasuredClip(name, fields, captioner.describe(name, *sidecars.get(sidecar_key(name), ())))
            for name, fields in found
        ]
    return MeasuredArchive(archive.name, clips, rejected)


def _seconds(clip: DecodedClip | ClipRejected) -> float:
    return clip.seconds if isinstance(clip, DecodedClip) else 0.0


def _with_duration(fields: MetadataEntry, seconds: float) -> MetadataEntry:
    """Return the fields of a clip with its whole length, before their confidence."""
    measured = {name: value for name, value in fields.items() if name != CONFIDENCE}
    return {**measured, DURATION: round(seconds, 3), CONFIDENCE: fields[CONFIDENCE]}

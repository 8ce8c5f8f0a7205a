"""The page of a data set: `dataset.html` beside the metadata or the tokens, and its artifact in the Prefect UI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import ReadingSettings
from musicgen_core.data.archive import archive_stem
from musicgen_core.errors import MusicgenError, raise_if_interrupted, reason_of
from musicgen_core.escaping import markdown_text
from musicgen_core.language import translated
from musicgen_core.wording import counted, lasting
from tasks.artifacts import markdown_table
from tasks.progress import run_logger
from tasks.served import file_link

if TYPE_CHECKING:
    from musicgen_core.captioning.metadata import MeasuredArchive, Merged
    from musicgen_core.data.levels import CodeVectors
    from musicgen_core.data.shards import ShardReport
    from musicgen_core.overview.findings import Findings, StandingOut

logger = logging.getLogger(__name__)
DATASET = "dataset"
"""Key of the artifact"""
MOST_LABELS = 10


@dataclass(frozen=True)
class DatasetPage:
    """A page that was written: its path, and what it shows."""

    path: str
    findings: Findings


def page_of_captions(
    target: UPath,
    merged: Merged,
    measured: Sequence[MeasuredArchive],
    archives: Iterable[UPath],
    settings: ReadingSettings,
) -> DatasetPage | None:
    """Write the page of captioned clips beside their metadata; return None if that failed, which is logged."""

    def findings() -> Findings:
        from musicgen_core.overview.clips import clips_of_lines
        from musicgen_core.overview.findings import findings_of

        return findings_of(clips_of_lines(merged.clips, merged.lines))

    rejected = sum(len(archive.rejected) for archive in measured)
    return _write(target.parent, findings, archives, settings, rejected)


def page_of_tokens(
    tokens: UPath,
    reports: Sequence[ShardReport],
    metadata: str | None,
    archives: Iterable[UPath],
    settings: ReadingSettings,
    model: str,
) -> DatasetPage | None:
    """Write the page of tokenized clips beside their shards; return None if that failed, which is logged."""

    def findings() -> Findings:
        from musicgen_core.captioning.metadata import ExistingMetadata
        from musicgen_core.overview.clips import clips_of_shards
        from musicgen_core.overview.findings import duplicates_of, findings_of

        existing = ExistingMetadata(storage.as_path(metadata)) if metadata else None
        found = findings_of(clips_of_shards(tokens, reports, existing))
        try:
            found.duplicates = duplicates_of(_clusters(tokens, reports, model))
        except MusicgenError as error:  # such as other shards that are damaged, or no room in the cache
            run_logger().warning("near duplicates are missing from the page of the data set: %s", reason_of(error))
        return found

    return _write(tokens, findings, archives, settings, sum(len(report.rejected) for report in reports))


def _clusters(tokens: UPath, reports: Sequence[ShardReport], model: str) -> list[list[tuple[str, str]]]:
    """Return the clusters of near duplicates in shards, as archives and paths of their clips."""
    from musicgen_core.data.duplicate_clips import near_duplicates_in
    from musicgen_core.data.shard_codec import shard_codec
    from musicgen_core.data.shards import shard_paths

    names = {archive_stem(UPath(report.archive)): report.archive for report in reports}
    filled = [stem for stem, report in zip(names, reports, strict=True) if report.clips]
    if not filled:
        return []
    codec, _ = shard_codec(shard_paths(tokens, filled[0])[0])

    def vectors() -> CodeVectors:
        from musicgen_core.model.compression import code_vectors
        from musicgen_core.model.weights import find_codec

        return code_vectors(find_codec(model))

    return [
        [(names.get(clip.stem, clip.stem), clip.clip) for clip in cluster]
        for cluster in near_duplicates_in(tokens, codec, vectors=vectors)
    ]


def _write(
    folder: UPath, findings: Callable[[], Findings], archives: Iterable[UPath], settings: ReadingSettings, rejected: int
) -> DatasetPage | None:
    from musicgen_core.overview.page import DATASET, PAGE, write_page

    target = folder / PAGE
    try:
        if target.exists() and not DATASET.is_at(target):
            run_logger().warning("%s is not a page of a data set and is kept: move it away to get that page", target)
            return None
        found = findings()
        if not found.clips:
            return None
        by_name: Mapping[str, UPath] = {archive.name: archive for archive in archives}
        left_out = counted(rejected, "clip") if rejected else ""
        write_page(target, found, by_name, settings, left_out)
    except Exception as error:  # of whatever type: the captions and tokens are there, and the page is not worth them
        raise_if_interrupted(error)
        run_logger().warning("%s could not be written (%s)", target, reason_of(error))
        logger.debug("the page of the data set could not be written", exc_info=True)
        return None
    return DatasetPage(str(target), found)


def dataset_artifact(page: DatasetPage) -> str:
    """Return the page's artifact as Markdown: the numbers of clips, labels, and clips that stand out."""
    found = page.findings
    rows = [("clips", f"{found.clips:,}"), ("archives", f"{len(found.archives):,}")]
    if found.lengths:
        rows.append(("length", markdown_text(translated(lasting(found.seconds)))))
    rows += [(f"without a {name}", f"{found.without[name]:,}") for name in ("tempo", "key", "description")]
    counts: dict[str, StandingOut] = {str(kind): one for kind, one in found.kinds.items()}
    counts |= {"at odds with their song": found.songs, "with a rare label": found.rare}
    if found.duplicates is not None:
        counts["near duplicates (clusters)"] = found.duplicates
    odd = [
        (name, f"{one.count:,}", markdown_text(f"{one.examples[0].archive}: {one.examples[0].path}"))
        for name, one in counts.items()
        if one.count
    ]
    labels = [(markdown_text(label), f"{number:,}") for label, number in found.most_frequent[:MOST_LABELS]]
    parts = [
        f"Histograms, labels and clips to listen to: {file_link(page.path)}",
        markdown_table(("", ""), rows),
        "## Clips that stand out",
        markdown_table(("kind", "clips", "the most extreme"), odd) if odd else "None.",
    ]
    if labels:
        parts += ["## Most frequent labels", markdown_table(("label", "clips"), labels)]
    return "\n\n".join(parts)

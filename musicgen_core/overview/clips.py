"""The clips of a data set with their metadata: from the lines of captioning, or from shards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from musicgen_core.captioning.metadata import ExistingMetadata
from musicgen_core.data.archive import archive_stem
from musicgen_core.data.caption_fields import DURATION, TAGS, MetadataEntry, own_description
from musicgen_core.data.captions import parse_line
from musicgen_core.data.shards import ShardReport, column_of, parse_fields, shard_paths
from musicgen_core.data.token_cache import THREADS

LONGEST_SECONDS = 1e6


class Clip(NamedTuple):
    """A clip.

    Attributes:
        archive: file name of its archive.
        seconds: its length; None if it isn't known.
    """

    archive: str
    path: str
    entry: MetadataEntry
    description: str | None
    seconds: float | None


def clips_of_lines(clips: Iterable[tuple[str, str]], lines: Iterable[bytes]) -> Iterator[Clip]:
    """Yield the clips of lines of metadata, whose archives and paths are `clips`."""
    for (archive, path), line in zip(clips, lines, strict=False):  # lines that belong to no clip follow
        entry = parse_line(line) or {}
        yield Clip(archive, path, entry, own_description(entry), _seconds(entry.get(DURATION)))


def clips_of_shards(tokens: UPath, reports: Sequence[ShardReport], metadata: ExistingMetadata | None) -> Iterator[Clip]:
    """Yield the clips of shards, with their lines of metadata, if any. Shards that can't be read are left out."""
    stems = [archive_stem(UPath(report.archive)) for report in reports]
    with ThreadPoolExecutor(THREADS) as pool:  # remote reads are latency-bound
        tables = pool.map(lambda stem: _small_columns(shard_paths(tokens, stem)[0]), stems)
        for report, stem, table in zip(reports, stems, tables, strict=True):
            with suppress(ValueError, KeyError):
                yield from _clips_of_shard(table, report.archive, stem, metadata) if table is not None else ()


def _small_columns(parquet: UPath) -> pa.Table | None:
    """Return a shard without its codes, or None if it can't be read."""
    try:
        with parquet.open("rb") as file:
            source = pq.ParquetFile(file)
            names = ["clip", "description", "duration"]
            names += ["fields"] if "fields" in source.schema_arrow.names else []
            return source.read(columns=names, use_threads=False)
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None


def _clips_of_shard(table: pa.Table, archive: str, stem: str, metadata: ExistingMetadata | None) -> Iterator[Clip]:
    rows = (column_of(table, name).to_pylist() for name in ("clip", "description", "duration", "fields"))
    for path, description, seconds, fields in zip(*rows, strict=True):
        number = None if metadata is None else metadata.find(stem, path)
        entry = {} if metadata is None or number is None else metadata[number][1]
        yield Clip(archive, path, entry or _entry_of(parse_fields(fields)), description, seconds)


def _entry_of(fields: Mapping[str, str]) -> MetadataEntry:
    """Return the texts for training as an entry; among their keywords are the tags of vocals."""
    return {TAGS if name == "keywords" else name: text for name, text in fields.items()}


def _seconds(value: object) -> float | None:
    with suppress(TypeError, ValueError, OverflowError):
        seconds = float(value)  # type: ignore[arg-type]
        return seconds if math.isfinite(seconds) and 0 < seconds < LONGEST_SECONDS else None
    return None

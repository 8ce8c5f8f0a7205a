"""Shards: the codes of one archive in `{stem}.parquet`, and its report `{stem}.json`, written last as a marker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import FRAME_RATE, MONO, CodeShape
from musicgen_core.data.archive import archive_stem
from musicgen_core.data.shard_codec import shard_shape
from musicgen_core.errors import TokensError
from musicgen_core.language import message
from musicgen_core.texts import shorten

SCHEMA_VERSION = 3
ROWS_PER_GROUP = 64
SCHEMA = pa.schema(
    [
        pa.field("clip", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("duration", pa.float64(), nullable=False),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("codes", pa.list_(pa.list_(pa.uint16())), nullable=False),
        pa.field("fields", pa.string()),  # JSON object of texts
        pa.field("group", pa.string()),
        pa.field("chroma", pa.list_(pa.uint8())),  # of clips that were tokenized for a melody model
    ]
)
_ADDED = {"fields": 2, "group": 2, "chroma": 3}
"""Columns that shards of earlier schema versions don't have, and the version that added them"""


@dataclass(frozen=True)
class Rejected:
    clip: str
    reason: str


@dataclass(frozen=True)
class Remark:
    """A remark on the description of a clip."""

    clip: str
    remark: str


@dataclass(frozen=True)
class ShardReport:
    """Content of `{stem}.json`.

    Attributes:
        limited_to: the `--limit` that truncated the shard, if any.
        remarks: remarks on descriptions that were shortened or can't be read.
        origin: folder or URL of the archive; None in shards of earlier versions.
        clip_suffixes: suffixes of the members that were clips when the shard was written, first of all only `.wav`.
        chroma: how the chroma of the clips was computed (`melody.chroma_identity`); None if it was not.
    """

    archive: str
    archive_bytes: int
    fingerprint: str
    captions_fingerprint: str
    clips: int
    audio_seconds: float
    rejected: list[Rejected] = field(default_factory=list)
    limited_to: int | None = None
    remarks: list[Remark] = field(default_factory=list)
    origin: str | None = None
    clip_suffixes: tuple[str, ...] = (".wav",)
    chroma: str | None = None

    @property
    def content(self) -> str:
        """Return identifiers of the codes and of the descriptions, as two words."""
        # Includes the number of clips, as an undamaged copy of a damaged archive has the same fingerprint.
        codes = f"{self.fingerprint}/{self.clips}"
        if self.limited_to is not None and self.clip_suffixes != ShardReport.clip_suffixes:
            codes += f"/{''.join(self.clip_suffixes)}"  # the first clips are others if more members are clips
        return f"{codes} {self.captions_fingerprint}"

    @property
    def content_with_chroma(self) -> str:
        """Return the same with an identifier of the chroma in the first word, as runs of melody models record it."""
        codes, space, descriptions = self.content.partition(" ")
        return f"{codes}/{self.chroma}{space}{descriptions}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a report. Raises ValueError, TypeError or KeyError if `text` is none."""
        values = json.loads(text)
        values["rejected"] = [Rejected(**entry) for entry in values["rejected"]]
        values["remarks"] = [Remark(**entry) for entry in values.get("remarks", [])]
        values["clip_suffixes"] = tuple(values.get("clip_suffixes", cls.clip_suffixes))
        return cls(**values)


@dataclass(frozen=True)
class Row:
    """One clip: name, description, duration in seconds, and codes [K, frames] uint16.

    Attributes:
        fields: texts that training may add to the description, by name, such as `genre`.
        group: clips of one group, such as a song, are never on both sides of the validation split.
        chroma: pitch classes of the melody, [chroma frames]; None unless they were tokenized for a melody model.
    """

    clip: str
    description: str | None
    duration: float
    codes: NDArray[np.uint16]
    fields: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    chroma: NDArray[np.uint8] | None = None


def shard_paths(tokens: UPath, stem: str) -> tuple[UPath, UPath]:
    """Return the paths of a shard as (parquet, json)."""
    return tokens / f"{stem}.parquet", tokens / f"{stem}.json"


class ShardWriter:
    """Writes rows to a local Parquet file one row group at a time, in constant memory.

    Args:
        path: the file to write.
        codec: identity of the codec.
        shape: of the codes.
        model: name of the codec's model, for display; may be empty.
    """

    def __init__(self, path: Path, codec: str, shape: CodeShape = MONO, model: str = "") -> None:
        metadata = {
            "schema_version": str(SCHEMA_VERSION),
            "codec": codec,
            "frame_rate": str(FRAME_RATE),
            "codebooks": str(shape.codebooks),
            "cardinality": str(shape.cardinality),
            **({"channels": str(shape.channels)} if shape.channels > 1 else {}),
            **({"model": model} if model else {}),
        }
        self._schema = SCHEMA.with_metadata(metadata)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", write_page_checksum=True)
        self._rows: list[Row] = []

    def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(_to_batch(self._rows, self._schema))
            self._rows.clear()


def _to_batch(rows: Sequence[Row], schema: pa.Schema) -> pa.RecordBatch:
    frames = np.array([row.codes.shape[1] for row in rows], dtype=np.int32)
    codebooks = rows[0].codes.shape[0]
    flat = np.concatenate([row.codes.reshape(-1) for row in rows])
    inner = np.concatenate([[0], np.repeat(frames, codebooks).cumsum()]).astype(np.int32)
    outer = np.arange(0, codebooks * len(rows) + 1, codebooks, dtype=np.int32)
    codes = pa.ListArray.from_arrays(outer, pa.ListArray.from_arrays(inner, pa.array(flat, pa.uint16())))
    columns = [
        pa.array([row.clip for row in rows], pa.string()),
        pa.array([row.description for row in rows], pa.string()),
        pa.array([row.duration for row in rows], pa.float64()),
        pa.array(frames),
        codes,
        pa.array([json.dumps(row.fields, ensure_ascii=False) if row.fields else None for row in rows], pa.string()),
        pa.array([row.group for row in rows], pa.string()),
        pa.array([row.chroma for row in rows], pa.list_(pa.uint8())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def publish_shard(parquet: Path, report: ShardReport, tokens: UPath) -> None:
    """Publish a shard. The report is deleted first and written last, so the shard is never mistaken for complete."""
    storage.delete_partials(tokens)
    target, marker = shard_paths(tokens, Path(parquet).stem)
    marker.unlink(missing_ok=True)
    storage.upload(parquet, target)
    storage.write_text(marker, json.dumps(asdict(report), ensure_ascii=False, indent=1))


def read_report(tokens: UPath, stem: str) -> ShardReport | None:
    """Return the report of a complete shard; None without report or Parquet file, or if the rows differ in number."""
    parquet, marker = shard_paths(tokens, stem)
    try:
        report = ShardReport.parse(storage.read_text(marker))
        storage.require_file(parquet)
        with parquet.open("rb") as file:
            rows = pq.ParquetFile(file).metadata.num_rows
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
        return None
    return report if rows == report.clips else None


def origin_of(archive: UPath) -> str:
    """Return the origin stored in a shard's report, which distinguishes archives of the same name."""
    return str(archive.absolute().parent)


def refuse_foreign_shard(tokens: UPath, archive: UPath, fingerprint_of: Callable[[ShardReport], str]) -> None:
    """Check that writing the shard of `archive` replaces only an earlier shard of the same archive.

    Args:
        fingerprint_of: returns the fingerprint of the archive's own shard with the limit and the clips left out of a
            report; if it equals the report's, the archive has only been moved.

    Raises:
        TokensError: a file at its path isn't this project's, or is the shard of another archive of the same name.
    """
    parquet, marker = shard_paths(tokens, archive_stem(archive))
    for path in (parquet, marker):
        if storage.is_local(path) and path.exists() and not path.is_file():
            raise _foreign(path, "which is not a file")
    report = None
    with suppress(FileNotFoundError):
        try:
            report = ShardReport.parse(storage.read_text(marker))
        except (ValueError, TypeError, KeyError) as error:
            raise _foreign(marker, "which is no report of a shard") from error
    if report is None and parquet.exists() and not _is_shard(parquet):
        raise _foreign(parquet, "which holds no codes")
    origin = origin_of(archive)
    if (
        report is not None
        and (report.archive, report.origin or origin) != (archive.name, origin)
        and report.fingerprint != fingerprint_of(report)
    ):
        other = f"{report.origin}/{report.archive}" if report.origin else report.archive
        raise _foreign(parquet, f"which holds the clips of {other}, another archive of the same name")


def _foreign(path: UPath, what: str) -> TokensError:
    return TokensError(
        message("the tokens would replace {path}, {what}", path=path, what=what),
        message("Give another directory for the tokens, or move that file away if it isn't needed"),
    )


def _is_shard(parquet: UPath) -> bool:
    try:
        with parquet.open("rb") as file:
            return b"codec" in (pq.read_schema(file).metadata or {})
    except (OSError, ValueError, pa.ArrowException):
        return False


def is_whole(tokens: UPath, stem: str, report: ShardReport) -> bool:
    """Return whether the shard of a report exists and every page has its checksum."""
    if read_report(tokens, stem) != report:
        return False
    with storage.staged(shard_paths(tokens, stem)[0]) as parquet:
        try:
            return sum(1 for _ in read_rows(parquet)) == report.clips
        except TokensError:
            return False


def described_clips(tokens: UPath, stem: str) -> list[tuple[str, str | None]]:
    """Return a shard's clips and their descriptions, in order, without reading the codes.

    Raises:
        TokensError: the file is damaged.
    """
    parquet, _ = shard_paths(tokens, stem)
    try:
        with parquet.open("rb") as file:
            table = pq.read_table(file, columns=["clip", "description"])
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged(parquet, error) from error
    return list(zip(*(table.column(name).to_pylist() for name in ("clip", "description")), strict=True))


def read_rows(parquet: Path) -> Iterator[Row]:
    """Yield the rows of a local shard, in order, one row group at a time.

    Raises:
        TokensError: the file is damaged.
    """
    try:
        with pq.ParquetFile(parquet, page_checksum_verification=True) as file:
            check_columns(file.schema_arrow)
            codebooks = shard_shape(file.schema_arrow).codebooks
            for group in range(file.num_row_groups):
                yield from _rows_of(file.read_row_group(group), codebooks)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _damaged(parquet, error) from error


def _damaged(parquet: Path | UPath, error: Exception) -> TokensError:
    return TokensError(
        message("the shard {parquet} can't be read ({error})", parquet=parquet, error=error),
        message("Delete it and run tokenize again"),
    )


def _rows_of(table: pa.Table, codebooks: int) -> Iterator[Row]:
    codes = table.column("codes").combine_chunks()
    flat = codes.flatten().flatten().to_numpy()
    start = 0
    names = ("clip", "description", "duration", "frames", "fields", "group", "chroma")
    for clip, description, duration, frames, fields, group, chroma in zip(
        *(column_of(table, name).to_pylist() for name in names), strict=True
    ):
        stop = start + codebooks * frames
        codes_of_clip = flat[start:stop].reshape(codebooks, frames)
        classes = None if chroma is None else np.array(chroma, dtype=np.uint8)
        yield Row(clip, description, duration, codes_of_clip, parse_fields(fields), group, classes)
        start = stop


def check_columns(schema: pa.Schema) -> None:
    """Check that the columns are those of a shard of any schema version.

    Raises:
        ValueError: they are not.
    """
    versions = range(1, SCHEMA_VERSION + 1)
    known = ([column for column in SCHEMA if _ADDED.get(column.name, 1) <= version] for version in versions)
    if not any(schema.equals(pa.schema(columns)) for columns in known):
        raise ValueError("its columns are not those of a shard")


def column_of(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array | pa.ChunkedArray:
    """Return a column of a shard; nulls for one that its schema version doesn't have."""
    if name in _ADDED and name not in table.schema.names:
        return pa.nulls(table.num_rows, SCHEMA.field(name).type)
    return table.column(name)


def parse_fields(text: str | None) -> dict[str, str]:
    """Return the fields in a value of the column `fields`. Raises ValueError if it isn't a JSON object of texts."""
    fields = json.loads(text) if text else {}
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise ValueError(f"the fields of a clip are {shorten(str(text))}, not a JSON object of texts")
    return fields


def copies_among(reports: Mapping[str, ShardReport]) -> dict[str, str]:
    """Return the original of each duplicate, by stems: the shard with most clips, then with the shorter name.

    Args:
        reports: reports of complete shards, by stem.
    """
    originals: dict[str, str] = {}
    copies = {}
    for stem in sorted(reports, key=lambda stem: (-reports[stem].clips, len(stem), stem)):
        original = originals.setdefault(reports[stem].fingerprint, stem)
        if original != stem:
            copies[stem] = original
    return copies


def stems_without_chroma(reports: Mapping[str, ShardReport]) -> list[str]:
    """Return the stems of shards that no melody model can be trained on."""
    return [stem for stem, report in reports.items() if report.clips and report.chroma is None]

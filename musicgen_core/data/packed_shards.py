"""Packed shards: a shard's clips in an uncompressed Arrow file, memory-mapped for random access.

A Parquet shard is decompressed 64 clips at a time, but training needs random access to single clips: 2 ms of a CPU core
for each, against 0.013 ms from the packed file, whose codes were validated when it was written. The packed file takes
12 kB per 30 s clip, 24 kB in stereo. Only pages that are read take memory, which the system can reclaim at any time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from musicgen_core.codes import MONO, STEREO, STEREO_SUFFIX, CodeShape
from musicgen_core.data.groups import clip_hash, group_hashes
from musicgen_core.data.levels import LAGS, CodeVectors, Profiles, profile
from musicgen_core.data.near_duplicates import PERMUTATIONS, Signatures, signature
from musicgen_core.data.shard_codec import another_codec, another_shape, shard_codec, shard_shape
from musicgen_core.data.shards import check_columns, column_of, parse_fields
from musicgen_core.errors import TokensError
from musicgen_core.language import message
from musicgen_core.music_theory import PITCH_CLASSES

VERSION = 6  # of the packed format: increase it when the same shard would be packed differently
ROWS_READ = 64  # Arrow uses some 100 kB per row while it decodes
CLIPS_PER_BATCH = 1024  # the small columns of a batch are contiguous, so opening a shard reads little
_CHECK = b"check"
Number = TypeVar("Number", bound=np.integer)
PACKED_SCHEMA = pa.schema(
    [
        pa.field("hash", pa.uint64(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("frames", pa.int32(), nullable=False),
        pa.field("crc", pa.uint32(), nullable=False),  # of the codes' bytes
        pa.field("fields", pa.string()),
        pa.field("group", pa.uint64(), nullable=False),
        pa.field("signature", pa.binary(2 * PERMUTATIONS), nullable=False),
        pa.field("chroma", pa.binary()),  # a byte for each frame
        pa.field("profile", pa.binary(LAGS), nullable=False),
        pa.field("codes", pa.list_(pa.list_(pa.uint16())), nullable=False),
    ]
)
_IN_ALL_VERSIONS = {"hash", "frames", "crc", "codes"}


@dataclass(frozen=True)
class PackedShard:
    """Memory-mapped clips of one shard. `table` has the columns of PACKED_SCHEMA."""

    path: Path
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def frames(self) -> NDArray[np.int32]:
        """Return the number of frames of each clip, [clips]."""
        return self.table.column("frames").to_numpy()

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Return the `clip_hash` of each clip, [clips]."""
        return self.table.column("hash").to_numpy()

    @property
    def groups(self) -> NDArray[np.uint64]:
        """Return the `group_hashes` of the clips, [clips]."""
        return self.table.column("group").to_numpy()

    @property
    def signatures(self) -> Signatures:
        """Return the `near_duplicates.signature` of each clip, [clips, PERMUTATIONS]."""
        return self._rows_of("signature", np.uint16)

    @property
    def profiles(self) -> Profiles:
        """Return the `levels.profile` of each clip, [clips, LAGS]; zeros if it was packed without code vectors."""
        return self._rows_of("profile", np.int8)

    def _rows_of(self, column: str, kind: type[Number]) -> NDArray[Number]:
        return np.concatenate([_rows_of(chunk, kind) for chunk in self.table.column(column).chunks])

    def description(self, row: int) -> str | None:
        return self.table.column("description")[row].as_py()

    def fields(self, row: int) -> dict[str, str]:
        """Return the texts that training may add to the description, by name."""
        return parse_fields(self.table.column("fields")[row].as_py())

    def chroma(self, row: int) -> NDArray[np.uint8] | None:
        """Return the pitch classes of a clip's melody, [chroma frames]; None if it was tokenized without them."""
        chroma = self.table.column("chroma")[row].as_py()
        return None if chroma is None else np.frombuffer(chroma, np.uint8)

    def codes(self, row: int) -> NDArray[np.uint16]:
        """Return the codes of a clip, [K, frames], read-only.

        Raises:
            TokensError: the file was damaged after it was written. It is deleted, so that it is regenerated.
        """
        lists = self.table.column("codes")[row].values  # one of each codebook
        codes = lists.flatten().to_numpy()
        # The checksum is what reads from the disk, and it does so without holding the GIL.
        if zlib.crc32(codes) != self.table.column("crc")[row].as_py():
            self.path.unlink(missing_ok=True)
            raise TokensError(
                message("codes in {path}, a copy made from the tokens, are damaged", path=self.path),
                message("Run again: the copy is regenerated. If the error comes back, check the disk"),
            )
        return codes.reshape(len(lists), -1)


def open_packed(path: Path, clips: int) -> PackedShard | None:
    """Open a packed shard of `clips` clips; return None if it is missing or damaged."""
    try:
        with pa.memory_map(str(path)) as file:  # the mapping lives as long as buffers that refer to it
            reader = pa.ipc.open_file(file)
            if not reader.schema.equals(PACKED_SCHEMA):
                return None
            found = [reader.get_batch_with_custom_metadata(number) for number in range(reader.num_record_batches)]
        table = pa.Table.from_batches([batch for batch, _ in found], PACKED_SCHEMA)
        table.validate(full=True)
        intact = all(dict(metadata or {}).get(_CHECK) == _check_of(batch) for batch, metadata in found)
    except (OSError, ValueError, pa.ArrowException):
        return None
    return PackedShard(path, table) if intact and table.num_rows == clips else None


def holds_other_data(path: Path) -> bool:
    """Return whether a file is Arrow with other columns than a packed shard of this or an earlier version."""
    try:
        with pa.memory_map(str(path)) as file:
            schema = pa.ipc.open_file(file).schema
            return not (_IN_ALL_VERSIONS <= set(schema.names) and all(column in PACKED_SCHEMA for column in schema))
    except (OSError, ValueError, pa.ArrowException):
        return False


def _check_of(batch: pa.RecordBatch) -> bytes:
    """Return a checksum of everything but the codes, which have their own."""
    crc = 0
    for name in ("hash", "frames", "crc", "group"):
        crc = zlib.crc32(batch.column(name).to_numpy(), crc)
    for name in ("signature", "profile"):
        crc = zlib.crc32(_rows_of(batch.column(name), np.uint8).tobytes(), crc)
    for chroma in batch.column("chroma").to_pylist():
        crc = zlib.crc32(b"%d" % (-1 if chroma is None else len(chroma)) + (chroma or b""), crc)
    texts = [batch.column(name).to_pylist() for name in ("description", "fields")]
    return b"%08x" % zlib.crc32(json.dumps(texts).encode(), crc)


def _rows_of(column: pa.FixedSizeBinaryArray, kind: type[Number]) -> NDArray[Number]:
    """Return a column of bytes as numbers, [rows, numbers of a row]."""
    width = column.type.byte_width // np.dtype(kind).itemsize
    start, stop = column.offset, column.offset + len(column)
    values = np.frombuffer(column.buffers()[1] or b"", kind, stop * width)
    return values.reshape(-1, width)[start:]


def pack_shard(parquet: Path, stem: str, codec: str, file: BinaryIO, vectors: CodeVectors | None = None) -> int:
    """Write a local shard to `file` in packed form; return its number of clips. Memory holds CLIPS_PER_BATCH at a time.

    Args:
        vectors: those of the codec's codes, for `PackedShard.profiles`.

    Raises:
        TokensError: the shard is damaged, or was encoded by another codec than `codec`.
        OSError: `file` can't be written.
    """
    clips = 0
    with pa.ipc.new_file(file, PACKED_SCHEMA) as writer:
        groups = iter(_groups(parquet, stem, codec))
        batches = (_to_packed(batch, stem, list(islice(groups, len(batch))), vectors) for batch in _read(parquet))
        while group := list(islice(batches, CLIPS_PER_BATCH // ROWS_READ)):
            together = pa.concat_batches(group)
            writer.write_batch(together, custom_metadata={_CHECK: _check_of(together)})
            clips += together.num_rows
    return clips


def _groups(parquet: Path, stem: str, codec: str) -> list[int]:
    with _reading(parquet):
        _check_codec(parquet, codec)
        with pq.ParquetFile(parquet, page_checksum_verification=True) as file:
            check_columns(file.schema_arrow)
            names = [name for name in ("clip", "group") if name in file.schema_arrow.names]
            table = file.read(columns=names, use_threads=False)
    return group_hashes(stem, *(column_of(table, name).to_pylist() for name in ("clip", "group")))


def _read(parquet: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a shard, with validated codes."""
    with _reading(parquet), pq.ParquetFile(parquet, page_checksum_verification=True) as file:
        # Single-threaded: several shards are read in parallel, and Arrow's threads would buffer more of each.
        for batch in file.iter_batches(ROWS_READ, use_threads=False):
            _check_codes(batch, shard_shape(file.schema_arrow))
            _check_chroma(column_of(batch, "chroma"))
            for fields in column_of(batch, "fields").to_pylist():
                parse_fields(fields)
            yield batch


@contextmanager
def _reading(parquet: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise TokensError(
            message("the shard {name} can't be read ({error})", name=parquet.name, error=error),
            message("Delete it and run tokenize again"),
        ) from error


def _check_codec(parquet: Path, codec: str) -> None:
    found, made_with = shard_codec(parquet)
    if found.removesuffix(STEREO_SUFFIX) == codec.removesuffix(STEREO_SUFFIX) and found != codec:
        is_stereo = codec.endswith(STEREO_SUFFIX)
        raise another_shape(parquet.name, *((MONO, STEREO) if is_stereo else (STEREO, MONO)))
    if found != codec:
        raise another_codec(parquet.name, made_with, message("this run's model"))


def _check_codes(batch: pa.RecordBatch, shape: CodeShape) -> None:
    codes = batch.column("codes")
    frames = batch.column("frames").to_numpy()
    lengths = [lists.value_lengths().to_numpy(zero_copy_only=False) for lists in (codes, codes.flatten())]
    codebooks, cardinality = shape.codebooks, shape.cardinality
    if (lengths[0] != codebooks).any() or not np.array_equal(lengths[1], frames.repeat(codebooks)) or 0 in frames:
        raise ValueError(f"its codes are not [{codebooks}, frames]")
    flat = codes.flatten().flatten()
    if flat.null_count or (len(flat) and flat.to_numpy().max() >= cardinality):
        raise ValueError(f"its codes are not all below {cardinality}")


def _check_chroma(chroma: pa.ListArray) -> None:
    classes, lengths = chroma.flatten(), chroma.value_lengths().fill_null(1).to_numpy()
    if classes.null_count or (len(classes) and classes.to_numpy().max() >= PITCH_CLASSES) or not lengths.all():
        raise ValueError("the chroma of its clips is not of pitch classes")


def _to_packed(batch: pa.RecordBatch, stem: str, groups: Sequence[int], vectors: CodeVectors | None) -> pa.RecordBatch:
    codes, frames = batch.column("codes"), batch.column("frames")
    flat, codebooks = codes.flatten().flatten().to_numpy(), len(codes[0])
    stops = (frames.to_numpy().astype(np.int64) * codebooks).cumsum()
    starts = [0, *stops[:-1]]
    parts = [flat[start:stop] for start, stop in zip(starts, stops, strict=True)]
    chroma = column_of(batch, "chroma").to_pylist()
    clips = [part.reshape(codebooks, -1) for part in parts]
    profiles = [bytes(LAGS) if vectors is None else profile(codes, vectors).tobytes() for codes in clips]
    columns = [
        pa.array([clip_hash(stem, clip) for clip in batch.column("clip").to_pylist()], pa.uint64()),
        batch.column("description"),
        frames,
        pa.array(list(map(zlib.crc32, parts)), pa.uint32()),
        column_of(batch, "fields"),
        pa.array(groups, pa.uint64()),
        pa.array([signature(codes).tobytes() for codes in clips], pa.binary(2 * PERMUTATIONS)),
        pa.array([None if each is None else bytes(each) for each in chroma], pa.binary()),
        pa.array(profiles, pa.binary(LAGS)),
        codes,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=PACKED_SCHEMA)

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.data import packed_shards
from musicgen_core.data.groups import clip_hash
from musicgen_core.data.packed_shards import PackedShard, open_packed, pack_shard
from musicgen_core.data.shards import SCHEMA, Row, ShardWriter
from musicgen_core.errors import TokensError

CODEC = "sha256:codec"


def write_parquet(path: Path, rows: list[Row]) -> Path:
    with ShardWriter(path, CODEC) as writer:
        for each in rows:
            writer.add(each)
    return path


def packed(folder: Path, rows: list[Row]) -> PackedShard:
    parquet, entry = write_parquet(folder / "a.parquet", rows), folder / "a.arrow"
    with open(entry, "wb") as file:
        assert pack_shard(parquet, "a", CODEC, file) == len(rows)
    shard = open_packed(entry, len(rows))
    assert shard is not None
    return shard


@pytest.mark.parametrize("column", ["hash", "description", "frames", "crc", "fields", "group", "signature", "chroma"])
def test_a_bit_that_flipped_beside_the_codes_is_found(tmp_path: Path, row: Callable[..., Row], column: str) -> None:
    shard = packed(
        tmp_path,
        [
            replace(
                row(f"{number}.wav", 7, f"description {number}"),
                fields={"bpm": f"{number}"},
                chroma=np.array([number % 12, 5, 3], np.uint8),
            )
            for number in range(70)
        ],
    )
    buffer = shard.table.column(column).chunk(0).buffers()[-1]
    values = buffer.to_pybytes()[:13]
    data = bytearray(shard.path.read_bytes())
    data[data.index(values)] ^= 1
    (tmp_path / "flipped.arrow").write_bytes(data)
    assert open_packed(tmp_path / "flipped.arrow", 70) is None


@given(
    frames=st.lists(st.integers(1, 40), max_size=150),
    texts=st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=20), min_size=1),
    per_batch=st.sampled_from([64, 128, 1024]),
)
@settings(deadline=None, max_examples=30)
def test_a_packed_shard_returns_its_clips(
    frames: list[int], texts: list[str | None], per_batch: int, row: Callable[..., Row]
) -> None:
    rows = [row(f"{number}.wav", length, texts[number % len(texts)]) for number, length in enumerate(frames)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_shards, "CLIPS_PER_BATCH", per_batch)
        shard = packed(Path(folder), rows)
        assert len(shard) == len(rows)
        assert shard.frames.tolist() == frames
        assert shard.hashes.tolist() == [clip_hash("a", each.clip) for each in rows]
        for number, expected in enumerate(rows):
            assert np.array_equal(shard.codes(number), expected.codes)
            assert shard.description(number) == expected.description


def test_a_packed_shard_returns_the_chroma_of_its_clips(tmp_path: Path, row: Callable[..., Row]) -> None:
    chroma = [np.array([1, 11], np.uint8), None, np.array([2], np.uint8)]
    rows = [replace(row(f"{number}.wav", 5), chroma=each) for number, each in enumerate(chroma)]
    found = map(packed(tmp_path, rows).chroma, range(3))
    assert [None if each is None else each.tolist() for each in found] == [[1, 11], None, [2]]


@pytest.mark.parametrize("chroma", [[], [3, 12], [3, None]])
def test_chroma_that_is_none_is_refused(tmp_path: Path, chroma: list[int | None]) -> None:
    table = pa.Table.from_pydict(columns(chroma=[chroma]), schema=SCHEMA.with_metadata({"codec": CODEC}))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TokensError, match="not of pitch classes"):
        pack_shard(tmp_path / "a.parquet", "a", CODEC, io.BytesIO())


def columns(**changed: Any) -> dict[str, Any]:
    return {
        "clip": ["x.wav"],
        "description": [None],
        "duration": [0.04],
        "frames": [2],
        "codes": [[[1, 2]] * 4],
        "fields": [None],
        "group": [None],
        "chroma": [None],
    } | changed


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"codes": [[[1, 2]] * 3]}, "[4, frames]"),
        ({"codes": [[[1, 2]] * 3 + [[1]]]}, "[4, frames]"),
        ({"codes": [[[1, 2]] * 3 + [None]]}, "[4, frames]"),
        ({"frames": [3]}, "[4, frames]"),
        ({"frames": [0], "codes": [[[]] * 4]}, "[4, frames]"),
        ({"codes": [[[1, 2]] * 3 + [[1, 2048]]]}, "below 2048"),
        ({"codes": [[[1, 2]] * 3 + [[1, None]]]}, "below 2048"),
    ],
)
def test_codes_that_are_no_codes_are_refused(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    table = pa.Table.from_pydict(columns(**changed), schema=SCHEMA.with_metadata({"codec": CODEC}))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TokensError) as refused:
        pack_shard(tmp_path / "a.parquet", "a", CODEC, io.BytesIO())
    assert reason in refused.value.found and "a.parquet" in refused.value.found


def test_codes_beyond_the_shards_own_cardinality_are_refused(tmp_path: Path) -> None:
    metadata = {"codec": CODEC, "cardinality": "512"}
    table = pa.Table.from_pydict(columns(codes=[[[1, 2]] * 3 + [[1, 512]]]), schema=SCHEMA.with_metadata(metadata))
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(TokensError, match="below 512"):
        pack_shard(tmp_path / "a.parquet", "a", CODEC, io.BytesIO())


@pytest.mark.parametrize("kind", ["other columns", "no parquet", "a page"])
def test_a_damaged_shard_is_named_with_advice(tmp_path: Path, row: Callable[..., Row], kind: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", [row("x.wav", 500)])
    if kind == "other columns":
        table = pa.table({"clip": ["x.wav"]}).replace_schema_metadata({"codec": CODEC})
        pq.write_table(table, path)
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2 if kind == "a page" else -1] ^= 0xFF
        path.write_bytes(data)
    with pytest.raises(TokensError) as refused:
        pack_shard(path, "a", CODEC, io.BytesIO())
    assert "a.parquet" in refused.value.found and "tokenize again" in refused.value.next_step


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(deadline=None, max_examples=200)
def test_damaged_codes_are_never_used(place: float, bit: int, row: Callable[..., Row]) -> None:
    rows = [row(f"{number}.wav", 30 + number, "text") for number in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        path = packed(Path(folder), rows).path
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        path.write_bytes(data)
        shard = open_packed(path, 3)
        if shard is None:
            return
        for number, expected in enumerate(rows):
            try:
                assert np.array_equal(shard.codes(number), expected.codes)
            except TokensError:
                assert not path.exists()  # so that it is made again


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "text", "a folder", "other columns", "other clips"])
def test_other_files_are_not_opened_as_packed_shards(tmp_path: Path, row: Callable[..., Row], kind: str) -> None:
    path = packed(tmp_path, [row("x.wav", 9)]).path
    data = path.read_bytes()
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "other columns":
        table = pa.table({"clip": ["x.wav"]})
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    elif kind != "missing":
        path.write_bytes({"empty": b"", "cut": data[:-30], "text": b"text", "other clips": data}[kind])
    assert open_packed(path, 2 if kind == "other clips" else 1) is None

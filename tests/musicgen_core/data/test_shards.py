from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.shard_codec import shard_codec
from musicgen_core.data.shards import (
    SCHEMA,
    Rejected,
    Row,
    ShardReport,
    ShardWriter,
    publish_shard,
    read_report,
    read_rows,
    shard_paths,
)
from musicgen_core.errors import TokensError

REPORT = ShardReport(
    archive="a.zip",
    archive_bytes=123,
    fingerprint="sha256:0",
    captions_fingerprint="sha256:1",
    clips=3,
    audio_seconds=1.5,
    rejected=[Rejected("ばつ.wav", "all its samples are zero")],
)


def row(name: str, frames: int = 5, description: str | None = None) -> Row:
    codes = np.random.default_rng(frames).integers(2048, size=(4, frames), dtype=np.uint16)
    return Row(name, description, frames / 50, codes)


def write(path: Path, rows: Sequence[Row], codec: str = "sha256:c") -> Path:
    with ShardWriter(path, codec) as writer:
        for entry in rows:
            writer.add(entry)
    return path


def same(row: Row, other: Row) -> bool:
    return replace(row, codes=other.codes) == other and np.array_equal(row.codes, other.codes)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(params=["local", "remote"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path / "tokens") if request.param == "local" else bucket


@pytest.fixture
def published(tokens: UPath, scratch: Path) -> UPath:
    """Return a directory with the complete shard of `a.zip`."""
    publish_shard(write(scratch / "a.parquet", [row("x.wav"), row("y.wav"), row("z.wav")]), REPORT, tokens)
    return tokens


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
rows_of_any_kind = st.lists(
    st.builds(
        lambda clip, description, frames: row(clip, frames, description),
        texts,
        st.none() | texts,
        st.integers(1, 60),
    ),
    max_size=140,
)


@settings(max_examples=25, deadline=None)
@given(rows=rows_of_any_kind)
def test_rows_read_back_as_they_were_written(scratch: Path, rows: list[Row]) -> None:
    found = list(read_rows(write(scratch / "trip.parquet", rows)))
    assert len(found) == len(rows)
    assert all(map(same, found, rows))
    assert all(entry.codes.dtype == np.uint16 for entry in found)


# The documented format


def test_the_parquet_file_has_the_documented_columns(scratch: Path) -> None:
    table = pq.read_table(write(scratch / "a.parquet", [row("x.wav", 7, "text"), row("y.wav", 3)]))
    assert [(field.name, field.type) for field in table.schema] == [
        ("clip", pa.string()),
        ("description", pa.string()),
        ("duration", pa.float64()),
        ("frames", pa.int32()),
        ("codes", pa.list_(pa.list_(pa.uint16()))),
        ("fields", pa.string()),
        ("group", pa.string()),
        ("chroma", pa.list_(pa.uint8())),
    ]
    first, second = table.to_pylist()
    assert (first["clip"], first["description"], first["duration"], first["frames"]) == ("x.wav", "text", 0.14, 7)
    assert first["codes"] == row("x.wav", 7).codes.tolist()  # [codebooks][frames]
    assert second["description"] is None


def as_version(path: Path, version: int) -> Path:
    """Rewrite a shard as versions 1 and 2 wrote it."""
    table = pq.read_table(path).drop_columns(["chroma"] if version == 2 else ["fields", "group", "chroma"])
    metadata = {**table.schema.metadata, b"schema_version": str(version).encode()}
    schema = pa.schema([field for field in SCHEMA if field.name in table.column_names], metadata)
    pq.write_table(table.cast(schema), path)
    return path


def test_fields_and_groups_are_read_as_they_were_written(scratch: Path) -> None:
    written = [replace(row("x.wav"), fields={"genre": "ダブ"}, group="live"), row("y.wav")]
    found = list(read_rows(write(scratch / "a.parquet", written)))
    assert [(each.fields, each.group) for each in found] == [({"genre": "ダブ"}, "live"), ({}, None)]


@pytest.mark.parametrize("version", [1, 2])
def test_shards_of_earlier_versions_lack_what_later_ones_added(scratch: Path, version: int) -> None:
    written = replace(row("x.wav", 7, "text"), fields={"genre": "dub"}, group="live", chroma=np.zeros(5, np.uint8))
    path = as_version(write(scratch / "a.parquet", [written, row("y.wav", 3)]), version)
    found = list(read_rows(path))
    fields, group = ({"genre": "dub"}, "live") if version == 2 else ({}, None)
    assert [(each.clip, each.description, each.fields, each.group, each.chroma) for each in found] == [
        ("x.wav", "text", fields, group, None),
        ("y.wav", None, {}, None, None),
    ]
    assert found[0].codes.tolist() == row("x.wav", 7).codes.tolist()


def test_chroma_is_read_as_it_was_written(scratch: Path) -> None:
    chroma = [np.array([3, 11, 0], np.uint8), None, np.array([7], np.uint8)]
    rows = [replace(row(f"{number}.wav"), chroma=each) for number, each in enumerate(chroma)]
    for found, expected in zip(read_rows(write(scratch / "a.parquet", rows)), chroma, strict=True):
        if expected is None:
            assert found.chroma is None
        else:
            assert found.chroma is not None and found.chroma.dtype == np.uint8
            assert found.chroma.tolist() == expected.tolist()


@pytest.mark.parametrize("fields", ["{broken", "[]", '{"bpm": 70}', "null x"])
def test_fields_that_are_no_texts_are_refused(scratch: Path, fields: str) -> None:
    table = pq.read_table(write(scratch / "a.parquet", [row("x.wav")]))
    position = table.column_names.index("fields")
    pq.write_table(table.set_column(position, SCHEMA.field("fields"), pa.array([fields])), scratch / "a.parquet")
    with pytest.raises(TokensError, match="can't be read"):
        list(read_rows(scratch / "a.parquet"))


def test_the_file_metadata_describe_the_codes(scratch: Path) -> None:
    path = write(scratch / "a.parquet", [row("x.wav")], codec="sha256:abc")
    metadata = pq.read_schema(path).metadata
    assert {key: metadata[key] for key in metadata if key != b"ARROW:schema"} == {
        b"schema_version": b"3",
        b"codec": b"sha256:abc",
        b"frame_rate": b"50",
        b"codebooks": b"4",
        b"cardinality": b"2048",
    }
    assert shard_codec(path) == ("sha256:abc", "")


@pytest.mark.parametrize(("rows", "groups"), [(0, []), (1, [1]), (64, [64]), (65, [64, 1]), (150, [64, 64, 22])])
def test_row_groups_have_at_most_64_clips_and_are_zstd(scratch: Path, rows: int, groups: list[int]) -> None:
    path = write(scratch / "a.parquet", [row(f"{number}.wav") for number in range(rows)])
    metadata = pq.ParquetFile(path).metadata
    found = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    assert [group.num_rows for group in found if group.num_rows] == groups
    assert {group.column(4).compression for group in found} <= {"ZSTD"}


def test_the_report_is_json_with_the_documented_fields(published: UPath) -> None:
    values = json.loads((published / "a.json").read_text(encoding="utf-8"))
    assert values == {
        "archive": "a.zip",
        "archive_bytes": 123,
        "fingerprint": "sha256:0",
        "captions_fingerprint": "sha256:1",
        "clips": 3,
        "audio_seconds": 1.5,
        "rejected": [{"clip": "ばつ.wav", "reason": "all its samples are zero"}],
        "limited_to": None,
        "remarks": [],
        "origin": None,
        "clip_suffixes": [".wav"],
        "chroma": None,
    }


def test_reports_of_earlier_versions_are_read() -> None:
    values = asdict(REPORT)
    del values["remarks"], values["origin"], values["clip_suffixes"], values["chroma"]
    assert ShardReport.parse(json.dumps(values)) == REPORT


# Complete or not


def test_a_published_shard_is_two_files_and_whole(published: UPath) -> None:
    assert sorted(path.name for path in published.iterdir()) == ["a.json", "a.parquet"]
    assert read_report(published, "a") == REPORT


@pytest.mark.parametrize("missing", [0, 1])
def test_a_shard_that_lacks_a_file_is_not_whole(published: UPath, missing: int) -> None:
    shard_paths(published, "a")[missing].unlink()
    assert read_report(published, "a") is None


def test_a_parquet_file_that_breaks_off_anywhere_is_not_whole(published: UPath) -> None:
    parquet, _ = shard_paths(published, "a")
    whole = parquet.read_bytes()
    for cut in {0, 3, 4, 8, len(whole) // 2, *range(len(whole) - 12, len(whole))}:
        parquet.write_bytes(whole[:cut])
        assert read_report(published, "a") is None


def test_truncated_and_foreign_reports_are_ignored(published: UPath) -> None:
    _, marker = shard_paths(published, "a")
    whole = marker.read_text(encoding="utf-8")
    strange = ["", "null", "[]", "{}", "7", '{"rejected": [3]}', whole.replace('"clips"', '"clip_count"')]
    for text in [*strange, *(whole[:cut] for cut in range(1, len(whole), 11))]:
        marker.write_text(text, encoding="utf-8")
        assert read_report(published, "a") is None


def test_a_report_with_a_wrong_row_count_is_ignored(tokens: UPath, scratch: Path) -> None:
    publish_shard(write(scratch / "a.parquet", [row("x.wav")]), REPORT, tokens)
    assert read_report(tokens, "a") is None


def test_a_failed_publication_leaves_no_complete_shard(
    published: UPath, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(local: Path, target: UPath) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(storage, "upload", fail)
    with pytest.raises(OSError, match="full"):
        publish_shard(write(scratch / "a.parquet", [row("x.wav")] * 3), REPORT, published)
    assert read_report(published, "a") is None


# Damage


def end_of_column(path: Path, group: int, index: int) -> int:
    column = pq.ParquetFile(path).metadata.row_group(group).column(index)
    start = column.dictionary_page_offset or column.data_page_offset
    return int(start + column.total_compressed_size)


def test_a_flipped_byte_in_a_page_of_codes_is_an_error(scratch: Path) -> None:
    path = write(scratch / "flipped.parquet", [row(f"{number}.wav", 50) for number in range(70)])
    whole = path.read_bytes()
    for group in range(2):
        last = end_of_column(path, group, 4) - 1
        for place in (last, last - 40):  # the end of a page, far from its header
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            with pytest.raises(TokensError, match=r"flipped\.parquet can't be read") as refused:
                list(read_rows(path))
            assert "tokenize again" in refused.value.next_step
        path.write_bytes(whole)


def test_a_flipped_bit_is_harmless_or_a_tokens_error(scratch: Path) -> None:
    rows = [row(f"{number}.wav", 20, "text") for number in range(3)]
    path = write(scratch / "anywhere.parquet", rows)
    whole = path.read_bytes()
    end_of_pages = end_of_column(path, 0, 4)

    @settings(max_examples=200, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 7))
    def check(place: int, bit: int) -> None:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        try:
            found = list(read_rows(path))
        except TokensError:
            return
        if place < end_of_pages:  # what lies behind has no checksums
            assert len(found) == len(rows) and all(map(same, found, rows))

    check()


def test_a_parquet_file_of_other_columns_is_refused(scratch: Path) -> None:
    pq.write_table(pa.table({"clip": ["x.wav"]}), scratch / "foreign.parquet")
    with pytest.raises(TokensError, match=r"foreign\.parquet can't be read .its columns"):
        list(read_rows(scratch / "foreign.parquet"))
    assert shard_codec(scratch / "foreign.parquet") == ("", "")

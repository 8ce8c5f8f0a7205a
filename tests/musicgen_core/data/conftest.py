"""Helpers of the data tests: reading whole archives, writing zips byte by byte, writing shards."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import pack as packed
from typing import Any

import numpy as np
import pytest
from upath import UPath

from musicgen_core.data.archive import open_archive
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.errors import ClipRejected
from tests.fixture_types import Contents


@pytest.fixture(scope="session")
def contents() -> Contents:
    """Return each clip's name and bytes, or the reason of its rejection."""

    def read(path: Path, **options: Any) -> list[tuple[str, bytes | str]]:
        found: list[tuple[str, bytes | str]] = []
        with open_archive(path, **options) as archive:
            for member in archive.clips():
                try:
                    with member.open() as file:
                        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
                        found.append((member.name, file.read()))
                except ClipRejected as rejected:
                    found.append((member.name, str(rejected)))
        return found

    return read


@dataclass(frozen=True)
class Raw:
    """Raw fields of a zip member; fields that aren't given are derived from `content`."""

    name: bytes
    content: bytes = b"content"
    packed: bytes | None = None
    packed_size: int | None = None
    flags: int = 0
    method: int = 0
    crc: int | None = None
    size: int | None = None
    extra: bytes = b""
    mode: int = 0
    local_name: bytes | None = None
    local_method: int | None = None
    offset: int | None = None


@pytest.fixture(scope="session")
def write_zip() -> Callable[..., Path]:
    """Write a zip of `Raw` members; `listed` and `disk` override fields of its end record."""

    def write(path: Path, members: Sequence[Raw], listed: int | None = None, disk: int = 0) -> Path:
        body, directory = bytearray(), bytearray()
        for raw in members:
            data = raw.content if raw.packed is None else raw.packed
            packed_size = len(data) if raw.packed_size is None else raw.packed_size
            crc = zlib.crc32(raw.content) if raw.crc is None else raw.crc
            size = len(raw.content) if raw.size is None else raw.size
            local_name = raw.name if raw.local_name is None else raw.local_name
            local_method = raw.method if raw.local_method is None else raw.local_method
            offset = len(body) if raw.offset is None else raw.offset
            body += b"PK\3\4" + packed(
                "<5H3L2H", 20, raw.flags, local_method, 0, 33, crc, packed_size, size, len(local_name), 0
            )
            body += local_name + data
            directory += b"PK\1\2" + packed(
                "<6H3L5H2L",
                *(0x031E, 20, raw.flags, raw.method, 0, 33, crc, packed_size, size, len(raw.name), len(raw.extra)),
                *(0, 0, 0, raw.mode << 16, offset),
            )
            directory += raw.name + raw.extra
        count = len(members) if listed is None else listed
        end = b"PK\5\6" + packed("<4H2LH", disk, disk, count, count, len(directory), len(body), 0)
        path.write_bytes(body + directory + end)
        return path

    return write


@pytest.fixture(scope="session")
def raw() -> type[Raw]:
    return Raw


def _row(name: str, frames: int, description: str | None = None) -> Row:
    rng = np.random.default_rng([frames, len(name)])
    return Row(name, description, frames / 50, rng.integers(1, 2048, size=(4, frames), dtype=np.uint16))


@pytest.fixture(scope="session")
def row() -> Callable[..., Row]:
    """Return a clip with made-up codes."""
    return _row


@pytest.fixture(scope="session")
def write_shard(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., ShardReport]:
    """Write and publish a shard of `Row`s as tokenizing does; further arguments override report fields."""

    def write(
        tokens: UPath, stem: str, rows: Sequence[Row], codec: str = "sha256:codec", **changed: Any
    ) -> ShardReport:
        parquet = tmp_path_factory.mktemp("shard") / f"{stem}.parquet"
        with ShardWriter(parquet, codec) as writer:
            for each in rows:
                writer.add(each)
        content = hashlib.sha256(stem.encode() + parquet.read_bytes()).hexdigest()
        report = ShardReport(f"{stem}.zip", 1, content, "", len(rows), sum(each.duration for each in rows))
        report = dataclasses.replace(report, **changed)
        publish_shard(parquet, report, tokens)
        return report

    return write

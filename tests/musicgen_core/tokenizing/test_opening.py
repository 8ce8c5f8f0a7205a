"""A task opens its archive once, and recognises its kind once; a remote one once where it is and once as a copy."""

from __future__ import annotations

import builtins
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.data import archive as archives
from musicgen_core.data.shards import shard_paths
from musicgen_core.tokenizing import Tokenizer
from tests.fixture_types import Members, Pack


@dataclass
class Opened:
    """How often a file called `batch_1.zip` was opened for reading, and how often one was recognised."""

    local: int = 0
    remote: int = 0
    recognised: int = 0

    def of(self, task: Callable[[], object]) -> tuple[int, int, int]:
        """Return the local and remote openings and the recognitions of a task."""
        self.local = self.remote = self.recognised = 0
        task()
        return self.local, self.remote, self.recognised


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    counts = Opened()
    open_local, open_remote, recognise = io.open, MemoryFileSystem._open, archives.recognise

    def local(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        counts.local += mode == "rb" and str(file).endswith("/batch_1.zip")
        return open_local(file, mode, *args, **options)

    def remote(self: MemoryFileSystem, path: str, mode: str = "rb", **options: Any) -> MemoryFile:
        counts.remote += mode == "rb" and path.endswith("/batch_1.zip")
        return open_remote(self, path, mode, **options)

    def counted(head: bytes) -> tuple[str, str] | None:
        counts.recognised += 1
        return recognise(head)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", local)
    monkeypatch.setattr(MemoryFileSystem, "_open", remote)
    monkeypatch.setattr(archives, "recognise", counted)
    return counts


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_local_archive_is_opened_once(
    codec: Codec, tmp_path: Path, pack: Pack, members: Members, kind: str, opened: Opened
) -> None:
    archive = storage.as_path(pack(tmp_path / "batch_1.zip", members, kind))
    tokenizer = Tokenizer(codec, storage.as_path(tmp_path / "tokens"))
    assert opened.of(lambda: tokenizer.tokenize(archive)) == (1, 0, 1)
    assert opened.of(lambda: tokenizer.tokenize(archive)) == (1, 0, 1)  # for the descriptions beside its clips


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_local_archive_is_opened_once_where_its_shard_is_damaged(
    counting: Any, tmp_path: Path, pack: Pack, members: Members, kind: str, opened: Opened
) -> None:
    archive = storage.as_path(pack(tmp_path / "batch_1.zip", members, kind))
    tokens = storage.as_path(tmp_path / "tokens")
    report = Tokenizer(counting, tokens).tokenize(archive)
    parquet = shard_paths(tokens, "batch_1")[0]
    data = bytearray(parquet.read_bytes())
    data[len(data) // 3] ^= 1
    parquet.write_bytes(data)
    assert opened.of(lambda: Tokenizer(counting, tokens).tokenize(archive)) == (1, 0, 1)
    assert Tokenizer(counting, tokens).tokenize(archive) == report
    assert counting.encoded == 6


def test_a_repaired_copy_is_opened_once(archive: UPath, counting: Any, tmp_path: Path, opened: Opened) -> None:
    path = Path(str(archive))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"fmt ", b"FMT ", 1))
    tokenizer = Tokenizer(counting, storage.as_path(tmp_path / "tokens"))
    tokenizer.tokenize(archive)
    assert counting.encoded == 2
    assert opened.of(lambda: tokenizer.tokenize(archive)) == (1, 0, 1)  # to find it still damaged
    path.write_bytes(whole)
    assert opened.of(lambda: tokenizer.tokenize(archive)) == (1, 0, 1)
    assert counting.encoded == 5


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_remote_archive_is_opened_once_where_it_is_and_once_as_a_copy(
    codec: Codec, tmp_path: Path, bucket: UPath, pack: Pack, members: Members, kind: str, opened: Opened
) -> None:
    storage.upload(pack(tmp_path / "batch_1.zip", members, kind), bucket / "batch_1.zip")
    archive = bucket / "batch_1.zip"

    def tokenize(tokens: str) -> Callable[[], object]:
        return lambda: Tokenizer(codec, storage.as_path(tmp_path / tokens)).tokenize(archive)

    assert opened.of(tokenize("tokens")) == (1, 1 + 1, 2)  # and for the download
    assert opened.of(tokenize("tokens")) == (0, 1, 1)
    assert opened.of(tokenize("others")) == (1, 1, 1)  # its digest is known

"""A failed or cancelled archive leaves no shard, and a remote one no local copy."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.data.shards import read_report
from musicgen_core.errors import ArchiveError, Cancelled, TokensError
from musicgen_core.tokenizing import Counts, Tokenizer
from tests.fixture_types import MakeWav, Members, Pack


def names_in(folder: UPath) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_cancelled_archive_leaves_no_shard(archive: UPath, codec: Codec, tokens: UPath, after: int) -> None:
    done: list[Counts] = []
    with pytest.raises(Cancelled, match="was cancelled"):
        Tokenizer(codec, tokens).tokenize(archive, on_clip=done.append, cancelled=lambda: len(done) > after)
    assert names_in(tokens) == []


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_that_breaks_off_leaves_no_shard(
    tmp_path: Path, pack: Pack, members: Members, codec: Codec, tokens: UPath, kind: str
) -> None:
    path = pack(tmp_path / "batch_1.zip", members, kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ArchiveError) as refused:
        Tokenizer(codec, tokens).tokenize(storage.as_path(path))
    assert "archive" in refused.value.found and refused.value.next_step
    assert names_in(tokens) == []


def test_a_missing_archive_is_named_and_leaves_no_shard(tmp_path: Path, codec: Codec, tokens: UPath) -> None:
    with pytest.raises(ArchiveError, match=r"batch_9\.zip"):
        Tokenizer(codec, tokens).tokenize(storage.as_path(tmp_path / "batch_9.zip"))
    assert names_in(tokens) == []


def test_a_whole_shard_stays_where_its_archive_breaks_off_later(archive: UPath, codec: Codec, tokens: UPath) -> None:
    report = Tokenizer(codec, tokens).tokenize(archive)
    path = Path(str(archive))
    path.write_bytes(path.read_bytes()[:-50])  # as while it is copied again
    with pytest.raises(ArchiveError):
        Tokenizer(codec, tokens).tokenize(archive)
    assert read_report(tokens, "batch_1") == report


@pytest.mark.parametrize("name", ["batch_1.json", "batch_1.parquet"])
def test_a_file_of_somebody_else_is_never_replaced(archive: UPath, codec: Codec, tokens: UPath, name: str) -> None:
    tokens.mkdir(parents=True, exist_ok=True)
    (tokens / name).write_bytes(b'{"title": "notes on a song"}')
    with pytest.raises(TokensError, match=name):
        Tokenizer(codec, tokens).tokenize(archive)
    Path(str(archive)).write_bytes(b"now broken")
    with pytest.raises(ArchiveError):
        Tokenizer(codec, tokens).tokenize(archive)
    assert names_in(tokens) == [name] and b"notes" in (tokens / name).read_bytes()


@pytest.mark.parametrize("name", ["batch_1.json", "batch_1.parquet"])
def test_a_pipe_at_a_shards_path_is_refused_without_blocking(
    archive: UPath, codec: Codec, tmp_path: Path, name: str
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(TokensError, match=f"{name}, which is not a file"):
        Tokenizer(codec, storage.as_path(tmp_path)).tokenize(archive)


def test_the_shard_of_a_namesake_archive_is_never_replaced(
    archive: UPath, codec: Codec, tokens: UPath, tmp_path: Path, pack: Pack, make_wav: MakeWav
) -> None:
    report = Tokenizer(codec, tokens).tokenize(archive)
    (tmp_path / "elsewhere").mkdir()
    other = storage.as_path(pack(tmp_path / "elsewhere" / "batch_1.zip", [("other.wav", make_wav(300))]))
    with pytest.raises(TokensError, match=f"holds the clips of {archive}, another archive of the same name"):
        Tokenizer(codec, tokens).tokenize(other)
    assert read_report(tokens, "batch_1") == report


def test_an_archive_that_moved_is_known_by_its_content(
    archive: UPath, codec: Codec, tokens: UPath, tmp_path: Path
) -> None:
    Tokenizer(codec, tokens).tokenize(archive, limit=1)
    moved = storage.as_path(tmp_path / "moved" / "batch_1.zip")
    Path(str(moved)).parent.mkdir()
    shutil.move(str(archive), str(moved))
    assert Tokenizer(codec, tokens).tokenize(moved).clips == 3


def test_trouble_with_the_disk_is_not_taken_for_a_bad_archive(
    archive: UPath, codec: Codec, tokens: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_batch", full)
    with pytest.raises(OSError, match="No space left"):
        Tokenizer(codec, tokens).tokenize(archive)
    assert names_in(tokens) == []


def test_no_copy_of_a_remote_archive_stays_behind(
    archive: UPath, codec: Codec, bucket: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.upload(Path(str(archive)), bucket / "batch_1.zip")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    Tokenizer(codec, bucket / "tokens").tokenize(bucket / "batch_1.zip")
    with pytest.raises(Cancelled):
        Tokenizer(codec, bucket / "others").tokenize(bucket / "batch_1.zip", cancelled=lambda: True)
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_disk_holds_one_remote_archive_a_worker(
    bucket: UPath, pack: Pack, make_wav: MakeWav, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = []
    for number in range(6):
        local = pack(tmp_path / f"batch_{number}.zip", [(f"{n}.wav", make_wav(200 + n)) for n in range(4)])
        storage.upload(local, bucket / local.name)
        archives.append(bucket / local.name)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    staged: list[int] = []
    tokenizer = Tokenizer(codec, storage.as_path(tmp_path / "tokens"))

    def count(_: Counts) -> None:
        with contextlib.suppress(FileNotFoundError):  # the other worker deletes its folder while this one looks
            staged.append(len(list(temporary.rglob("*.zip"))))

    def tokenize(archive: UPath) -> None:
        tokenizer.tokenize(archive, on_clip=count)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(tokenize, archives))
    assert 1 <= max(staged) <= 2
    assert list(temporary.iterdir()) == []

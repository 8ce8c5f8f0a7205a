from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import STEREO_SUFFIX
from musicgen_core.data.dataset import load_clips
from musicgen_core.data.packed_shards import PACKED_SCHEMA
from musicgen_core.data.shards import read_report, shard_paths
from musicgen_core.data.token_cache import FOLDER_VARIABLE, TokenCache, default_folder
from musicgen_core.errors import TokensError
from tests.fixture_types import MakeRow, WriteShard

CODEC = "sha256:codec"
LOAD = """
import logging, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
from pathlib import Path
from musicgen_core import storage
from musicgen_core.data.dataset import load_clips
clips = load_clips(storage.as_path(sys.argv[1]), "sha256:codec", Path(sys.argv[2]))
print("loaded", len(clips), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tokens(tmp_path: Path) -> UPath:
    return storage.as_path(tmp_path / "tokens")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def load_elsewhere(tokens: UPath, folder: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Load in another process, which holds the clips until its input ends."""
    processes: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", LOAD, str(tokens), str(folder)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def loaded(tokens: UPath, folder: Path, limit: int) -> tuple[object, object]:
    """Load within a limit, and return the object that keeps the entries leased."""
    stems = sorted(path.stem for path in tokens.iterdir() if path.suffix == ".parquet")
    reports = {stem: report for stem in stems if (report := read_report(tokens, stem)) is not None}
    return TokenCache(folder, limit).packed(tokens, reports, CODEC)


def entries(folder: Path) -> set[Path]:
    return set(folder.glob("*.arrow"))


def damage(path: UPath, part: bytes) -> None:
    """Change a byte in the middle of the first occurrence of `part`."""
    data = bytearray(path.read_bytes())
    data[data.index(part) + len(part) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_a_second_start_reads_no_codes_from_where_the_tokens_are(
    bucket: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    for stem in ("a", "b"):
        write_shard(bucket, stem, [row("x.wav", 500)])
    first = load_clips(bucket, CODEC, folder)
    made = {path: path.stat().st_ino for path in entries(folder)}
    assert len(made) == 2
    for stem in ("a", "b"):
        parquet, _ = shard_paths(bucket, stem)
        data = parquet.read_bytes()
        parquet.write_bytes(data[:4] + bytes(2000) + data[2004:])  # whoever read the codes again would notice
    second = load_clips(bucket, CODEC, folder)
    assert np.array_equal(first.codes_of(1), second.codes_of(1))
    assert {path: path.stat().st_ino for path in entries(folder)} == made
    with pytest.raises(TokensError):
        load_clips(bucket, CODEC, folder.with_name("other"))


@pytest.mark.parametrize("changed", ["captions_fingerprint", "fingerprint"])
def test_a_shard_with_another_report_is_read_again(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow, changed: str
) -> None:
    write_shard(tokens, "a", [row("x.wav", 5, "before")], fingerprint="one")
    assert load_clips(tokens, CODEC, folder).description(0) == "before"
    write_shard(tokens, "a", [row("x.wav", 5, "after")], **({"fingerprint": "one"} | {changed: "two"}))
    assert load_clips(tokens, CODEC, folder).description(0) == "after"


def test_a_repaired_archive_with_an_equal_fingerprint_is_reread(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    write_shard(tokens, "a", [row("x.wav", 5)], fingerprint="one")
    before = load_clips(tokens, CODEC, folder)
    write_shard(tokens, "a", [row("x.wav", 5), row("y.wav", 5)], fingerprint="one")
    after = load_clips(tokens, CODEC, folder)
    assert (len(before), len(after)) == (1, 2)
    assert before.fingerprints != after.fingerprints  # a training on the one is refused the other


@pytest.mark.parametrize("kind", ["empty", "cut", "garbage"])
def test_a_damaged_entry_is_made_again(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow, kind: str
) -> None:
    for stem in ("a", "b"):
        write_shard(tokens, stem, [row("x.wav", 500)])
    expected = load_clips(tokens, CODEC, folder).codes_of(0).copy()
    for path in entries(folder):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "garbage": bytes(len(data))}[kind])
    clips = load_clips(tokens, CODEC, folder)
    assert np.array_equal(clips.codes_of(0), expected)


def test_codes_damaged_in_the_cache_are_regenerated_by_the_next_run(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    clip = row("x.wav", 500)
    write_shard(tokens, "a", [clip])
    load_clips(tokens, CODEC, folder)
    (entry,) = entries(folder)
    damage(UPath(entry), clip.codes.tobytes())
    with pytest.raises(TokensError, match=entry.name) as refused:
        load_clips(tokens, CODEC, folder).codes_of(0)
    assert "Run again" in refused.value.next_step
    assert np.array_equal(load_clips(tokens, CODEC, folder).codes_of(0), clip.codes)


def test_the_least_recently_used_unleased_entry_is_evicted(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    def entry_of(stem: str) -> Path:
        report = read_report(tokens / stem, stem)
        assert report is not None
        return TokenCache(folder).entry(stem, CODEC, report)

    for stem in "abcde":
        write_shard(tokens / stem, stem, [row("x.wav", 5000)])  # 40 kB packed
    limit = 150_000
    in_use = loaded(tokens / "a", folder, limit)
    for age, stem in enumerate("bc"):
        loaded(tokens / stem, folder, limit)
        os.utime(entry_of(stem), (1000 + age, 1000 + age))
    os.utime(entry_of("a"), (1, 1))
    loaded(tokens / "b", folder, limit)  # used again: c is the older one now
    loaded(tokens / "d", folder, limit)
    assert entries(folder) == {entry_of(stem) for stem in "abd"}
    del in_use
    loaded(tokens / "e", folder, limit)
    assert entries(folder) == {entry_of(stem) for stem in "bde"}


def test_unused_entries_of_earlier_versions_are_evicted(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    folder.mkdir()
    earlier = folder / f"{'0a' * 16}.arrow"
    schema = pa.schema([column for column in PACKED_SCHEMA if column.name != "signature"])
    with pa.OSFile(str(earlier), "wb") as file, pa.ipc.new_file(file, schema):
        pass
    write_shard(tokens, "a", [row("x.wav", 5)])
    loaded(tokens, folder, 1)
    assert not earlier.exists()


def test_tokens_larger_than_the_limit_can_be_used(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    for stem in "abc":
        write_shard(tokens, stem, [row("x.wav", 5000)])
    shards, _lease = TokenCache(folder, limit=1).packed(
        tokens, {stem: report for stem in "abc" if (report := read_report(tokens, stem))}, CODEC
    )
    assert len(entries(folder)) == len(shards) == 3


def test_entries_used_by_another_process_stay_until_it_ends(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow, load_elsewhere: Callable[[], Any]
) -> None:
    write_shard(tokens, "a", [row("x.wav", 5000)])
    process = load_elsewhere()
    assert any(line.startswith("loaded 1") for line in iter(process.stdout.readline, ""))
    (used,) = entries(folder)
    other = tokens / "other"
    write_shard(other, "b", [row("x.wav", 5000)])
    loaded(other, folder, limit=1)
    assert used in entries(folder)
    process.kill()
    process.wait()
    write_shard(other, "c", [row("x.wav", 5000)])
    loaded(other, folder, limit=1)
    assert used not in entries(folder)
    assert not list((folder / "leases").glob("*")), "leases of processes that are gone are removed"


def test_processes_that_start_together_pack_each_shard_once(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow, load_elsewhere: Callable[[], Any]
) -> None:
    for number in range(20):
        write_shard(tokens, f"shard_{number}", [row(f"{clip}.wav", 1500) for clip in range(70)])
    processes = [load_elsewhere() for _ in range(3)]
    output = "".join(process.communicate("")[0] for process in processes)
    assert output.count("loaded 1400") == 3
    assert sum(int(count) for count in re.findall(r"packing (\d+) shards", output)) == 20
    assert len(entries(folder)) == 20


def test_partial_files_of_a_killed_process_are_removed(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    folder.mkdir()
    partial = folder / f"{'0123' * 8}.arrow.99-0123abcd.partial"
    partial.write_bytes(b"half")
    os.utime(partial, (1, 1))  # a file of this moment may not be locked yet by the process that writes it
    write_shard(tokens, "a", [row("x.wav", 5)])
    load_clips(tokens, CODEC, folder)
    assert not list(folder.glob("*.partial"))


def test_files_of_others_in_the_folder_stay(tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow) -> None:
    (folder / "leases").mkdir(parents=True)
    theirs = [folder / name for name in ("data.arrow", "film.partial", f"{'f00d' * 8}.arrow", "leases/contract")]
    for path in theirs:
        path.write_bytes(b"of somebody else")
    with pa.OSFile(str(theirs[2]), "wb") as file, pa.ipc.new_file(file, pa.schema([("x", pa.int64())])):
        pass
    theirs += [folder / f"{'abcd' * 8}.arrow", folder / "leases" / "pipe"]
    for pipe in theirs[-2:]:
        os.mkfifo(pipe)  # not waited for
    (folder / ".lock").write_text("of somebody else")
    write_shard(tokens, "a", [row("x.wav", 5)])
    TokenCache(folder, limit=0).packed(tokens, {"a": read_report(tokens, "a")}, CODEC)  # type: ignore[dict-item]
    assert all(path.exists() for path in theirs) and (folder / ".lock").read_text() == "of somebody else"


def test_tokens_too_large_for_the_disk_are_refused_before_fetching(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    write_shard(tokens, "a", [row("x.wav", 5)])
    old = load_clips(tokens, CODEC, folder)
    del old
    write_shard(tokens, "b", [row("x.wav", 5)], audio_seconds=1e13)
    with pytest.raises(TokensError, match=r"takes 4,000\.0 TB in .*, where .* GB are free") as refused:
        load_clips(tokens, CODEC, folder)
    assert FOLDER_VARIABLE in refused.value.next_step
    assert len(entries(folder)) == 1  # nothing gave way in vain


def test_stereo_codes_need_twice_the_room(tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow) -> None:
    codec = f"{CODEC}{STEREO_SUFFIX}"
    write_shard(tokens, "a", [row("x.wav", 5)], codec, audio_seconds=1e13)
    with pytest.raises(TokensError, match=r"takes 8,000\.0 TB in"):
        load_clips(tokens, codec, folder)


def test_a_disk_that_fills_up_is_named(tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow) -> None:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", folder], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        write_shard(tokens, "a", [row("x.wav", 50_000)], audio_seconds=1.0)
        with pytest.raises(TokensError, match="no room is left") as refused:
            load_clips(tokens, CODEC, folder)
        assert str(folder) in refused.value.found and FOLDER_VARIABLE in refused.value.next_step
        assert not entries(folder) and not list(folder.glob("*.partial"))
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_an_unwritable_cache_directory_is_named(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    write_shard(tokens, "a", [row("x.wav", 5)])
    folder.write_text("a file")
    with pytest.raises(TokensError, match=str(folder)) as refused:
        load_clips(tokens, CODEC, folder)
    assert FOLDER_VARIABLE in refused.value.next_step


def test_the_environment_can_move_the_cache_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: UPath, write_shard: WriteShard, row: MakeRow
) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    if sys.platform == "linux":
        assert default_folder() == tmp_path / "home" / "musicgen-flows" / "tokens"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    write_shard(tokens, "a", [row("x.wav", 5)])
    load_clips(tokens, CODEC)
    assert len(entries(tmp_path / "elsewhere")) == 1


def test_a_shard_replaced_while_being_read_is_not_cached(
    tokens: UPath, folder: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    report = write_shard(tokens, "a", [row("x.wav", 5)])
    write_shard(tokens, "a", [row("x.wav", 5), row("y.wav", 5)])
    with pytest.raises(TokensError, match="changed while it was read"):
        TokenCache(folder).packed(tokens, {"a": report}, CODEC)
    assert not entries(folder)

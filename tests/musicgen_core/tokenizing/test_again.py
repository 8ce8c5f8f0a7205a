"""Finished shards are kept; changed, truncated or damaged ones are regenerated."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.shard_codec import shard_codec
from musicgen_core.data.shards import read_report, shard_paths
from musicgen_core.tokenizing import Tokenizer
from tests.fixture_types import MakeWav, Members, Pack, RowsOf

CLIPS = ["audio/one.wav", "audio/two.WAV", "audio/three.wav"]
REJECTED = ["audio/broken.wav", "audio/short.wav"]


def test_complete_and_current_shards_are_not_encoded_again(
    archive: UPath, counting: Any, tokens: UPath, tmp_path: Path
) -> None:
    first = Tokenizer(counting, tokens).tokenize(archive)
    assert counting.encoded == 3
    before = shard_paths(tokens, "batch_1")[0].read_bytes()
    assert Tokenizer(counting, tokens).tokenize(archive) == first
    Path(str(archive)).touch()
    assert Tokenizer(counting, tokens).tokenize(archive) == first
    assert counting.encoded == 3
    assert shard_paths(tokens, "batch_1")[0].read_bytes() == before


def test_an_archive_whose_content_changed_is_done_again(
    archive: UPath, counting: Any, tokens: UPath, pack: Pack, members: Members, make_wav: MakeWav
) -> None:
    first = Tokenizer(counting, tokens).tokenize(archive)
    pack(Path(str(archive)), [("audio/one.wav", make_wav(523, 0.3)), *members[1:]])
    second = Tokenizer(counting, tokens).tokenize(archive)
    assert counting.encoded == 6
    assert second.fingerprint != first.fingerprint
    assert read_report(tokens, "batch_1") == second


def test_another_codec_encodes_again(archive: UPath, counting: Any, tokens: UPath) -> None:
    Tokenizer(counting, tokens).tokenize(archive)
    counting.identity = "sha256:another"
    Tokenizer(counting, tokens).tokenize(archive)
    assert counting.encoded == 6
    with storage.staged(shard_paths(tokens, "batch_1")[0]) as parquet:
        assert shard_codec(parquet) == ("sha256:another", "debug")


def damage_missing_report(tokens: UPath) -> None:
    shard_paths(tokens, "batch_1")[1].unlink()


def damage_missing_codes(tokens: UPath) -> None:
    shard_paths(tokens, "batch_1")[0].unlink()


def damage_end(tokens: UPath) -> None:
    parquet = shard_paths(tokens, "batch_1")[0]
    parquet.write_bytes(parquet.read_bytes()[:-20])


def damage_codes(tokens: UPath) -> None:
    parquet = shard_paths(tokens, "batch_1")[0]
    data = bytearray(parquet.read_bytes())
    data[len(data) // 3] ^= 1
    parquet.write_bytes(data)


@pytest.mark.parametrize("damage", [damage_missing_report, damage_missing_codes, damage_end, damage_codes])
def test_a_damaged_shard_is_regenerated(
    archive: UPath, counting: Any, tokens: UPath, damage: Callable[[UPath], None]
) -> None:
    report = Tokenizer(counting, tokens).tokenize(archive)
    codes = shard_paths(tokens, "batch_1")[0].read_bytes()
    damage(tokens)
    assert Tokenizer(counting, tokens).tokenize(archive) == report
    assert counting.encoded == 6
    assert shard_paths(tokens, "batch_1")[0].read_bytes() == codes
    assert read_report(tokens, "batch_1") == report


def test_a_repaired_copy_of_a_damaged_zip_is_tokenized_again(
    archive: UPath, counting: Any, tokens: UPath, members: Members, rows_of: RowsOf
) -> None:
    path = Path(str(archive))
    whole = path.read_bytes()
    place = whole.index(dict(members)["audio/one.wav"]) + 100
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    damaged = Tokenizer(counting, tokens).tokenize(archive)
    assert [entry.clip for entry in damaged.rejected] == ["audio/one.wav", *REJECTED]
    assert Tokenizer(counting, tokens).tokenize(archive) == damaged
    assert counting.encoded == 2
    path.write_bytes(whole)
    repaired = Tokenizer(counting, tokens).tokenize(archive)
    assert repaired.fingerprint == damaged.fingerprint
    assert [entry.clip for entry in repaired.rejected] == REJECTED
    assert [row.clip for row in rows_of(tokens)] == CLIPS


def test_a_raised_limit_accepts_clips_rejected_before(archive: UPath, codec: Codec, tokens: UPath) -> None:
    report = Tokenizer(codec, tokens, TokenizeSettings(max_clip_gib=1e-6)).tokenize(archive)
    assert report.clips == 0 and "max_clip_gib" in report.rejected[0].reason
    assert Tokenizer(codec, tokens).tokenize(archive).clips == 3


def test_a_member_rejected_for_its_packing_is_read_once_repacked(
    tmp_path: Path, make_wav: MakeWav, codec: Codec, tokens: UPath
) -> None:
    """The digest of a zip covers more than the content: a change of encryption must count, too."""
    path = tmp_path / "batch_1.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wav", make_wav())
    plain = path.read_bytes()
    local, central = plain.index(b"PK\3\4") + 6, plain.index(b"PK\1\2") + 8
    encrypted = bytearray(plain)
    encrypted[local] |= 1
    encrypted[central] |= 1
    path.write_bytes(encrypted)
    assert "encrypted" in Tokenizer(codec, tokens).tokenize(storage.as_path(path)).rejected[0].reason
    path.write_bytes(plain)
    assert Tokenizer(codec, tokens).tokenize(storage.as_path(path)).clips == 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_remote_archive_that_is_done_is_not_fetched_again(
    archive: UPath,
    codec: Codec,
    bucket: UPath,
    tokens: UPath,
    pack: Pack,
    members: Members,
    tmp_path: Path,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    local = pack(tmp_path / "batch_2.zip", members, kind)
    storage.upload(local, bucket / "batch_2.zip")
    report = Tokenizer(codec, tokens).tokenize(bucket / "batch_2.zip")

    def fetched(*_: object, **__: object) -> None:
        raise AssertionError("fetched again")

    monkeypatch.setattr(type(bucket.fs), "get_file", fetched)
    if storage.is_local(tokens):  # else the shard itself is fetched, which is small
        assert Tokenizer(codec, tokens).tokenize(bucket / "batch_2.zip") == report


def test_a_cut_is_recorded_and_a_full_run_redoes_the_shard(archive: UPath, counting: Any, tokens: UPath) -> None:
    cut = Tokenizer(counting, tokens).tokenize(archive, limit=3)
    assert (cut.clips, [entry.clip for entry in cut.rejected], cut.limited_to) == (2, REJECTED[:1], 3)
    assert json.loads(shard_paths(tokens, "batch_1")[1].read_text())["limited_to"] == 3
    assert Tokenizer(counting, tokens).tokenize(archive, limit=3) == cut
    assert counting.encoded == 2
    full = Tokenizer(counting, tokens).tokenize(archive)
    assert (full.clips, full.limited_to) == (3, None)
    assert full.fingerprint != cut.fingerprint
    assert counting.encoded == 5


def test_a_trial_does_not_cut_a_shard_that_is_whole(archive: UPath, counting: Any, tokens: UPath) -> None:
    whole = Tokenizer(counting, tokens).tokenize(archive)
    assert Tokenizer(counting, tokens).tokenize(archive, limit=1) == whole
    assert counting.encoded == 3

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec, Codes
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.audio import resample
from musicgen_core.data.captions import load_captions
from musicgen_core.data.shards import Row, ShardReport, read_report, read_rows, shard_codec, shard_paths
from musicgen_core.errors import ArchiveError, Cancelled
from musicgen_core.tokenizing import Counts, Tokenizer

MakeWav = Callable[..., bytes]
Pack = Callable[..., Path]
Members = list[tuple[str, bytes]]


class CountingCodec(Codec):
    """The debug codec, counting how often it encodes."""

    def __init__(self, codec: Codec) -> None:
        self.__dict__.update(codec.__dict__)
        self.encoded = 0

    def start(self, clips: Sequence[NDArray[np.float32]], rate: int) -> Callable[[], list[Codes]]:
        self.encoded += len(clips)
        return super().start(clips, rate)


@pytest.fixture
def counting(codec: Codec) -> CountingCodec:
    return CountingCodec(codec)


@pytest.fixture(params=["local", "remote"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path / "tokens") if request.param == "local" else bucket / "tokens"


@pytest.fixture(scope="module")
def members(make_wav: MakeWav) -> Members:
    """Three clips of different rates and lengths, two that can't be used, and what is no clip."""
    return [
        ("audio/one.wav", make_wav(440, 0.3)),
        ("audio/broken.wav", b"RIFF\x24\x00\x00\x00WAVE this is not audio"),
        ("cover.jpg", b"no clip"),
        ("audio/two.WAV", make_wav(880, 0.2, rate=44_100, channels=2)),
        ("audio/short.wav", make_wav(440, 0.01)),
        ("audio/three.wav", make_wav(220, 0.25, rate=22_050)),
    ]


CLIPS = ["audio/one.wav", "audio/two.WAV", "audio/three.wav"]
REJECTED = ["audio/broken.wav", "audio/short.wav"]


@pytest.fixture
def archive(tmp_path: Path, pack: Pack, members: Members) -> UPath:
    return storage.as_path(pack(tmp_path / "batch_1.zip", members))


def rows_of(tokens: UPath, stem: str = "batch_1") -> list[Row]:
    with storage.staged(shard_paths(tokens, stem)[0]) as parquet:
        return list(read_rows(parquet))


def names_in(folder: UPath) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def captions_in(folder: Path, **descriptions: str) -> Path:
    lines = [json.dumps({"path": f"{stem}.wav", "description": text}) for stem, text in descriptions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder / "metadata.jsonl"


# What a shard holds


def test_every_wav_is_a_row_or_a_rejection_in_the_archives_order(archive: UPath, codec: Codec, tokens: UPath) -> None:
    report = Tokenizer(codec, tokens).tokenize(archive)
    assert [row.clip for row in rows_of(tokens)] == CLIPS
    assert [entry.clip for entry in report.rejected] == REJECTED
    assert "not decodable" in report.rejected[0].reason and "less than one frame" in report.rejected[1].reason
    assert read_report(tokens, "batch_1") == report
    assert names_in(tokens) == ["batch_1.json", "batch_1.parquet"]


@settings(max_examples=15, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["good", "broken", "silent", "other"]), max_size=6),
    kind=st.sampled_from(["zip", "tar.gz"]),
)
def test_whatever_is_in_an_archive_each_wav_is_accounted_for_once(
    tmp_path_factory: pytest.TempPathFactory, pack: Pack, make_wav: MakeWav, codec: Codec, kinds: list[str], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("any")
    bytes_of = {"good": make_wav(seconds=0.05), "broken": b"none", "silent": make_wav(0, 0.05), "other": b"text"}
    names = [f"{index}.{'txt' if each == 'other' else 'wav'}" for index, each in enumerate(kinds)]
    members = [("a", b""), *zip(names, (bytes_of[each] for each in kinds), strict=True)]
    path = storage.as_path(pack(folder / "batch_1.zip", members, kind))
    report = Tokenizer(codec, storage.as_path(folder)).tokenize(path)
    clips = [row.clip for row in rows_of(storage.as_path(folder))]
    assert clips == [name for name, each in zip(names, kinds, strict=True) if each == "good"]
    assert [entry.clip for entry in report.rejected] == [
        name for name, each in zip(names, kinds, strict=True) if each in ("broken", "silent")
    ]


def test_a_clips_codes_are_those_of_encoding_it_alone(
    archive: UPath, codec: Codec, tokens: UPath, members: Members
) -> None:
    Tokenizer(codec, tokens).tokenize(archive)
    data = dict(members)
    for row in rows_of(tokens):
        audio, rate = soundfile.read(io.BytesIO(data[row.clip]), dtype="float32", always_2d=True)
        samples = resample(audio.mean(axis=1), rate)
        codes = codec.encode(torch.from_numpy(samples)[None, None])[0]
        assert (row.codes == codes.numpy()).mean() >= 0.999
        assert row.codes.shape == (4, -(-len(samples) // 640))
        assert row.duration == len(audio) / rate


def test_the_report_tells_what_was_read(archive: UPath, codec: Codec, tokens: UPath) -> None:
    report = Tokenizer(codec, tokens).tokenize(archive)
    assert (report.archive, report.archive_bytes) == ("batch_1.zip", Path(str(archive)).stat().st_size)
    assert (report.clips, report.limited_to) == (3, None)
    assert report.audio_seconds == pytest.approx(0.3 + 0.2 + 0.25, abs=0.001)
    with storage.staged(shard_paths(tokens, "batch_1")[0]) as parquet:
        assert shard_codec(parquet) == codec.identity


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_a_tar_gives_the_same_rows_as_a_zip(
    tmp_path: Path, pack: Pack, members: Members, archive: UPath, codec: Codec, kind: str
) -> None:
    tar = storage.as_path(pack(tmp_path / "batch_2.zip", members, kind))
    tokens = storage.as_path(tmp_path / "tokens")
    reports = [Tokenizer(codec, tokens).tokenize(path) for path in (archive, tar)]
    for row, other in zip(rows_of(tokens), rows_of(tokens, "batch_2"), strict=True):
        assert dataclasses.replace(row, codes=other.codes) == other and np.array_equal(row.codes, other.codes)
    assert reports[0].rejected == reports[1].rejected


def test_a_remote_archive_gives_the_same_shard_as_a_local_one(
    archive: UPath, codec: Codec, tokens: UPath, bucket: UPath, tmp_path: Path
) -> None:
    storage.upload(Path(str(archive)), bucket / "batch_1.zip")
    assert Tokenizer(codec, tokens).tokenize(bucket / "batch_1.zip") == Tokenizer(
        codec, storage.as_path(tmp_path / "local")
    ).tokenize(archive)


def test_progress_counts_every_clip(archive: UPath, codec: Codec, tokens: UPath) -> None:
    seen: list[Counts] = []
    Tokenizer(codec, tokens).tokenize(archive, on_clip=seen.append)
    assert seen == [Counts(*at, total=5) for at in ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2))]


# Again


def test_what_is_whole_and_current_is_not_encoded_again(
    archive: UPath, counting: CountingCodec, tokens: UPath, tmp_path: Path
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
    archive: UPath, counting: CountingCodec, tokens: UPath, pack: Pack, members: Members, make_wav: MakeWav
) -> None:
    first = Tokenizer(counting, tokens).tokenize(archive)
    pack(Path(str(archive)), [("audio/one.wav", make_wav(523, 0.3)), *members[1:]])
    second = Tokenizer(counting, tokens).tokenize(archive)
    assert counting.encoded == 6
    assert second.fingerprint != first.fingerprint
    assert read_report(tokens, "batch_1") == second


def test_another_codec_encodes_again(archive: UPath, counting: CountingCodec, tokens: UPath) -> None:
    Tokenizer(counting, tokens).tokenize(archive)
    counting.identity = "sha256:another"
    Tokenizer(counting, tokens).tokenize(archive)
    assert counting.encoded == 6
    with storage.staged(shard_paths(tokens, "batch_1")[0]) as parquet:
        assert shard_codec(parquet) == "sha256:another"


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
def test_a_damaged_shard_is_made_anew(
    archive: UPath, counting: CountingCodec, tokens: UPath, damage: Callable[[UPath], None]
) -> None:
    report = Tokenizer(counting, tokens).tokenize(archive)
    codes = shard_paths(tokens, "batch_1")[0].read_bytes()
    damage(tokens)
    assert Tokenizer(counting, tokens).tokenize(archive) == report
    assert counting.encoded == 6
    assert shard_paths(tokens, "batch_1")[0].read_bytes() == codes
    assert read_report(tokens, "batch_1") == report


# Descriptions


def test_descriptions_come_from_the_metadata(archive: UPath, codec: Codec, tokens: UPath, tmp_path: Path) -> None:
    captions = load_captions(storage.as_path(captions_in(tmp_path, one="eins", three="🎵 três")))
    Tokenizer(codec, tokens, metadata=captions).tokenize(archive)
    assert [row.description for row in rows_of(tokens)] == ["eins", None, "🎵 três"]


def test_where_only_descriptions_changed_they_are_written_and_nothing_is_encoded(
    archive: UPath, counting: CountingCodec, tokens: UPath, tmp_path: Path
) -> None:
    plain = Tokenizer(counting, tokens).tokenize(archive)
    before = rows_of(tokens)
    reports = [plain]
    for text in ("eins", "uno"):
        captions = load_captions(storage.as_path(captions_in(tmp_path, one=text)))
        reports.append(Tokenizer(counting, tokens, metadata=captions).tokenize(archive))
        after = rows_of(tokens)
        assert [row.description for row in after] == [text, None, None]
        assert all(np.array_equal(row.codes, old.codes) for row, old in zip(after, before, strict=True))
        assert read_report(tokens, "batch_1") == reports[-1]
    assert counting.encoded == 3
    assert len({report.captions_fingerprint for report in reports}) == 3
    assert {dataclasses.replace(report, captions_fingerprint="") for report in map(hashable, reports)} == {
        dataclasses.replace(hashable(plain), captions_fingerprint="")
    }


def hashable(report: ShardReport) -> ShardReport:
    return dataclasses.replace(report, rejected=tuple(report.rejected))  # type: ignore[arg-type]


def test_descriptions_of_other_archives_leave_the_shard_alone(
    archive: UPath, codec: Codec, tokens: UPath, tmp_path: Path
) -> None:
    first = Tokenizer(codec, tokens, metadata=load_captions(storage.as_path(captions_in(tmp_path, one="x")))).tokenize(
        archive
    )
    before = shard_paths(tokens, "batch_1")[1].read_bytes()
    more = load_captions(storage.as_path(captions_in(tmp_path, one="x", elsewhere="y")))
    assert Tokenizer(codec, tokens, metadata=more).tokenize(archive) == first
    assert shard_paths(tokens, "batch_1")[1].read_bytes() == before


# Limits and ends


def test_a_cut_is_recorded_and_a_full_run_redoes_the_shard(
    archive: UPath, counting: CountingCodec, tokens: UPath
) -> None:
    cut = Tokenizer(counting, tokens).tokenize(archive, limit=3)
    assert (cut.clips, [entry.clip for entry in cut.rejected], cut.limited_to) == (2, REJECTED[:1], 3)
    assert json.loads(shard_paths(tokens, "batch_1")[1].read_text())["limited_to"] == 3
    assert Tokenizer(counting, tokens).tokenize(archive, limit=3) == cut
    assert counting.encoded == 2
    full = Tokenizer(counting, tokens).tokenize(archive)
    assert (full.clips, full.limited_to) == (3, None)
    assert full.fingerprint != cut.fingerprint
    assert counting.encoded == 5


def test_a_trial_does_not_cut_a_shard_that_is_whole(archive: UPath, counting: CountingCodec, tokens: UPath) -> None:
    whole = Tokenizer(counting, tokens).tokenize(archive)
    assert Tokenizer(counting, tokens).tokenize(archive, limit=1) == whole
    assert counting.encoded == 3


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_cancelled_archive_leaves_no_shard(archive: UPath, codec: Codec, tokens: UPath, after: int) -> None:
    answers = iter([*[False] * after, True])
    with pytest.raises(Cancelled, match=f"after {after} clips"):
        Tokenizer(codec, tokens).tokenize(archive, cancelled=lambda: next(answers))
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


def test_no_shard_of_an_older_version_stands_for_an_archive_that_fails_now(
    archive: UPath, codec: Codec, tokens: UPath
) -> None:
    Tokenizer(codec, tokens).tokenize(archive)
    Path(str(archive)).write_bytes(b"now broken")
    with pytest.raises(ArchiveError):
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


# Sidecars, damage and long runs


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_descriptions_beside_clips_are_found_before_and_behind_them(
    tmp_path: Path, pack: Pack, make_wav: MakeWav, counting: CountingCodec, tokens: UPath, kind: str
) -> None:
    members = [
        ("a.txt", b"first"),
        ("a.wav", make_wav(440)),
        ("b.wav", make_wav(880)),
        ("b.json", b'{"description": "second", "bpm": 120}'),
    ]
    archive = storage.as_path(pack(tmp_path / "batch_1.zip", members, kind))
    report = Tokenizer(counting, tokens).tokenize(archive)
    assert [row.description for row in rows_of(tokens)] == ["first", "second"]
    assert Tokenizer(counting, tokens).tokenize(archive) == report
    Tokenizer(counting, tokens, TokenizeSettings(caption_prefix="mystyle")).tokenize(archive)
    assert [row.description for row in rows_of(tokens)] == ["mystyle, first", "mystyle, second"]
    assert counting.encoded == 2


def test_a_mended_copy_of_a_damaged_zip_is_done_again(
    archive: UPath, counting: CountingCodec, tokens: UPath, members: Members
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
    mended = Tokenizer(counting, tokens).tokenize(archive)
    assert mended.fingerprint == damaged.fingerprint
    assert [entry.clip for entry in mended.rejected] == REJECTED
    assert [row.clip for row in rows_of(tokens)] == CLIPS


def test_a_limit_that_is_raised_takes_what_it_had_rejected(archive: UPath, codec: Codec, tokens: UPath) -> None:
    report = Tokenizer(codec, tokens, TokenizeSettings(max_clip_gib=1e-6)).tokenize(archive)
    assert report.clips == 0 and "max_clip_gib" in report.rejected[0].reason
    assert Tokenizer(codec, tokens).tokenize(archive).clips == 3


def test_several_archives_at_once_give_what_each_gives_alone(
    tmp_path: Path, pack: Pack, make_wav: MakeWav, codec: Codec
) -> None:
    archives = []
    for number in range(4):
        members = [(f"{n}.wav", make_wav(200 + 50 * n + number, 0.1 + 0.05 * n)) for n in range(8)]
        archives.append(storage.as_path(pack(tmp_path / f"batch_{number}.zip", members)))
    together, apart = storage.as_path(tmp_path / "together"), storage.as_path(tmp_path / "apart")
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(Tokenizer(codec, together).tokenize, archives))
    assert reports == [Tokenizer(codec, apart).tokenize(archive) for archive in archives]
    for archive in archives:
        for row, other in zip(rows_of(together, archive.stem), rows_of(apart, archive.stem), strict=True):
            assert row.clip == other.clip and (row.codes == other.codes).mean() >= 0.999


def test_trouble_with_the_disk_is_not_taken_for_a_bad_archive(
    archive: UPath, codec: Codec, tokens: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.ParquetWriter.write_batch", full)
    with pytest.raises(OSError, match="No space left"):
        Tokenizer(codec, tokens).tokenize(archive)
    assert names_in(tokens) == []


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


def test_a_repacked_member_is_taken_where_its_old_packing_was_rejected(
    tmp_path: Path, make_wav: MakeWav, codec: Codec, tokens: UPath
) -> None:
    """A zip's directory knows a member by its content: that it is no longer encrypted must count too."""
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

"""`--exclude` leaves clips out by the fields of the metadata, without encoding anything twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.captions import load_captions
from musicgen_core.data.exclusion import check_exclusions
from musicgen_core.data.shards import Rejected, ShardReport
from musicgen_core.errors import MetadataError
from musicgen_core.tokenizing import Tokenizer
from tests.fixture_types import Members, Pack, RowsOf

ONE, TWO, THREE = "audio/one.wav", "audio/two.WAV", "audio/three.wav"
Values = dict[str, dict[str, Any]]
MEASURED: Values = {ONE: {"silence": 0.97}, TWO: {"silence": 0.0, "speech": 0.6}, THREE: {"silence": 0.1, "speech": 0}}


class Archive:
    """An archive, its metadata and its tokens."""

    def __init__(self, path: UPath, codec: Any, tokens: UPath, metadata: UPath) -> None:
        self.path, self.codec, self.tokens, self.metadata = path, codec, tokens, metadata

    def describe(self, values: Values) -> None:
        lines = [json.dumps({"archive": "batch_1.zip", "path": path, **fields}) for path, fields in values.items()]
        self.metadata.write_text("\n".join(lines))

    def tokenize(self, *exclude: Any, limit: int | None = None, path: UPath | None = None) -> ShardReport:
        settings = TokenizeSettings(exclude=exclude)
        captions = load_captions(self.metadata, settings)
        return Tokenizer(self.codec, self.tokens, settings, captions).tokenize(path or self.path, limit)


@pytest.fixture
def shard(archive: UPath, counting: Any, tokens: UPath, tmp_path: Path) -> Archive:
    made = Archive(archive, counting, tokens, UPath(tmp_path / "metadata.jsonl"))
    made.describe(MEASURED)
    return made


def test_excluded_clips_are_rejections_and_not_encoded(shard: Archive, rows_of: RowsOf) -> None:
    report = shard.tokenize("silent", "speech")
    assert shard.codec.encoded == 1
    assert [row.clip for row in rows_of(shard.tokens)] == [THREE] and report.clips == 1
    assert report.rejected[:2] == [Rejected(ONE, "silent: 97 % of its time"), Rejected(TWO, "speech: 60 % of its time")]
    assert [each.clip for each in report.rejected[2:]] == ["audio/broken.wav", "audio/short.wav"]
    assert shard.tokenize("silent", "speech") == report
    assert shard.codec.encoded == 1


def test_shards_stay_valid_where_nothing_is_left_out(shard: Archive) -> None:
    before = shard.tokenize()
    shard.describe({ONE: {"silence": 0.2}, TWO: {}, THREE: {}})
    assert shard.tokenize("silent") == before
    assert shard.codec.encoded == 3


def test_a_complete_shard_loses_excluded_clips_without_encoding(shard: Archive, rows_of: RowsOf) -> None:
    whole = shard.tokenize()
    filtered = shard.tokenize("silent")
    assert shard.codec.encoded == 3
    assert [row.clip for row in rows_of(shard.tokens)] == [TWO, THREE]
    assert filtered.fingerprint != whole.fingerprint and filtered.audio_seconds == pytest.approx(0.45, abs=0.01)
    fresh = Archive(shard.path, shard.codec, shard.tokens.parent / "fresh", shard.metadata).tokenize("silent")
    assert fresh == filtered


def test_a_corrected_line_brings_its_clip_back(shard: Archive, rows_of: RowsOf) -> None:
    shard.tokenize("speech")
    shard.describe({**MEASURED, TWO: {"silence": 0.0, "speech": 0}})
    report = shard.tokenize("speech")
    assert [row.clip for row in rows_of(shard.tokens)] == [ONE, TWO, THREE]
    assert [each.clip for each in report.rejected] == ["audio/broken.wav", "audio/short.wav"]
    assert report == shard.tokenize()


def test_a_changed_measurement_changes_only_the_reason(shard: Archive) -> None:
    shard.tokenize("speech")
    shard.describe({**MEASURED, TWO: {"speech": 0.8}})
    assert shard.tokenize("speech").rejected[0] == Rejected(TWO, "speech: 80 % of its time")
    assert shard.codec.encoded == 2


def test_a_limited_run_keeps_a_complete_shard_with_exclusions(shard: Archive) -> None:
    complete = shard.tokenize("silent")
    assert shard.tokenize("silent", limit=2) == complete
    assert shard.codec.encoded == 2


def test_a_moved_archive_replaces_its_shard_with_exclusions(
    shard: Archive, tmp_path: Path, pack: Pack, members: Members
) -> None:
    shard.tokenize("silent")
    (tmp_path / "moved").mkdir()
    moved = UPath(pack(tmp_path / "moved" / "batch_1.zip", members))
    assert shard.tokenize(path=moved).clips == 3


def test_every_clip_may_be_left_out(shard: Archive, rows_of: RowsOf) -> None:
    shard.describe({path: {"silence": 1} for path in (ONE, TWO, THREE, "audio/broken.wav", "audio/short.wav")})
    report = shard.tokenize("silent")
    assert (report.clips, len(report.rejected), rows_of(shard.tokens)) == (0, 5, [])


def test_clips_in_a_tar_are_left_out(shard: Archive, tmp_path: Path, pack: Pack, members: Members) -> None:
    tar = UPath(pack(tmp_path / "batch_1.tar", members, "tar"))
    assert shard.tokenize("silent", "speech", path=tar).clips == 1


class TestCheck:
    NAMES = (("batch_1", [ONE, TWO, THREE]),)

    def captions(self, shard: Archive, *exclude: Any) -> Any:
        return load_captions(shard.metadata, TokenizeSettings(exclude=exclude))

    def test_without_metadata_it_is_refused(self) -> None:
        assert check_exclusions(None, (), self.NAMES) == []
        with pytest.raises(MetadataError, match=r"--exclude silent,vocals needs.*no metadata file\. Run .* caption"):
            check_exclusions(None, ("silent", "vocals"), self.NAMES)

    def test_fields_that_no_clip_has_are_refused(self, shard: Archive) -> None:
        with pytest.raises(MetadataError, match=r"--exclude clipped,vocals .* no clip has clipping, vocals\. Run"):
            check_exclusions(
                self.captions(shard, "silent", "clipped", "vocals"), ("silent", "clipped", "vocals"), self.NAMES
            )

    def test_clips_that_were_not_measured_are_counted(self, shard: Archive) -> None:
        remarks = check_exclusions(self.captions(shard, "silent", "speech"), ("silent", "speech"), self.NAMES)
        assert len(remarks) == 1 and "usable speech in the metadata, 1 of 3 clips: not left out as speech" in remarks[0]


def test_the_name_of_two_clips_with_other_measurements_tells_nothing(tmp_path: Path, codec: Codec) -> None:
    lines = [{"path": f"{folder}/a.wav", "genre": "jazz", "silence": folder == "b"} for folder in "bc"]
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join(json.dumps({**line, "silence": float(line["silence"])}) for line in lines)
    )
    captions = load_captions(UPath(tmp_path / "metadata.jsonl"), TokenizeSettings(exclude=["silent"]))
    found = captions.find("x/a.wav")
    assert found is not None and found.traits == {} and found.fields == {"genre": "jazz"}

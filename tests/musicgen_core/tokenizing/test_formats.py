"""Clips of every format become rows, also where an earlier version read only wavs."""

from __future__ import annotations

import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from upath import UPath

from musicgen_core import storage, tokenizing
from musicgen_core.codec import Codec
from musicgen_core.data import tar_archive, zip_archive
from musicgen_core.data.archive import content_digest
from musicgen_core.data.captions import load_captions
from musicgen_core.data.members import CLIP_SUFFIXES, is_clip
from musicgen_core.data.shards import ShardReport, shard_paths
from musicgen_core.tokenizing import Tokenizer
from tests.fixture_types import MakeWav, Members, Pack, RowsOf

RATE = 48_000
WAV_ONLY = (".wav",)
KINDS = ["zip", "tar", "tar.gz"]
SUBTYPES = {"WAV": "PCM_16", "FLAC": "PCM_16", "MP3": "MPEG_LAYER_III", "AIFF": "PCM_24"}
FILES = {
    "a.wav": "WAV",
    "a.flac": "FLAC",
    "b.Mp3": "MP3",
    "x/c.ogg": "VORBIS",
    "x/d.OPUS": "OPUS",
    "e.aif": "AIFF",
    "f.aiff": "AIFF",
}


def sound(form: str, seconds: float = 0.5) -> bytes:
    buffer = io.BytesIO()
    tone = 0.4 * np.sin(np.arange(round(seconds * RATE)) / 20)
    container = form if form in SUBTYPES else "OGG"
    soundfile.write(buffer, tone, RATE, format=container, subtype=SUBTYPES.get(form, form))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_every_format_are_rows_of_their_length(
    tmp_path: Path, pack: Pack, codec: Codec, rows_of: RowsOf, kind: str
) -> None:
    members = [(name, sound(form)) for name, form in FILES.items()]
    cut = [(f"cut{name[name.index('.') :]}", data[: len(data) // 2]) for name, data in members]
    path = pack(tmp_path / "batch_1.zip", [*members[:3], ("cover.jpg", b"no clip"), *cut, *members[3:]], kind)
    report = Tokenizer(codec, storage.as_path(tmp_path)).tokenize(storage.as_path(path))
    rows = rows_of(storage.as_path(tmp_path))
    assert [row.clip for row in rows] == list(FILES)
    assert [row.duration for row in rows] == [0.5] * len(FILES)
    assert [entry.clip for entry in report.rejected] == [name for name, _ in cut]
    assert report.clip_suffixes == CLIP_SUFFIXES


def test_formats_of_one_name_share_a_sidecar_and_match_by_path_first(
    tmp_path: Path, pack: Pack, codec: Codec, rows_of: RowsOf
) -> None:
    members = [(name, sound(FILES[name])) for name in ("a.wav", "a.flac", "b.Mp3")]
    path = storage.as_path(pack(tmp_path / "batch_1.zip", [("a.txt", b"beside"), *members]))
    tokens = storage.as_path(tmp_path)
    Tokenizer(codec, tokens).tokenize(path)
    assert [row.description for row in rows_of(tokens)] == ["beside", "beside", None]
    lines = [{"path": "a.flac", "description": "flac"}, {"path": "y/b.wav", "description": "by stem"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Tokenizer(codec, tokens, metadata=load_captions(tokens / "metadata.jsonl")).tokenize(path)
    assert [row.description for row in rows_of(tokens)] == ["flac", "flac", "by stem"]


def tokenized_before(archive: UPath, codec: Codec, tokens: UPath, limit: int | None = None) -> ShardReport:
    """Write a shard as the version did that read only wavs."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (zip_archive, tar_archive):
            patch.setattr(module, "is_clip", partial(is_clip, suffixes=WAV_ONLY))
        patch.setattr(tokenizing, "CLIP_SUFFIXES", WAV_ONLY)
        report = Tokenizer(codec, tokens).tokenize(archive, limit)
    _, marker = shard_paths(tokens, "batch_1")
    values = json.loads(marker.read_text())
    assert values.pop("clip_suffixes") == [".wav"]
    marker.write_text(json.dumps(values, ensure_ascii=False, indent=1))
    return report


@pytest.fixture(params=KINDS)
def mixed(request: pytest.FixtureRequest, tmp_path: Path, pack: Pack, make_wav: MakeWav) -> UPath:
    members = [("a.wav", make_wav()), ("b.flac", sound("FLAC")), ("c.wav", make_wav(880)), ("d.mp3", b"broken")]
    return storage.as_path(pack(tmp_path / "batch_1.zip", members, request.param))


@pytest.mark.parametrize("limit", [None, 2])
def test_a_shard_that_lacks_clips_of_other_formats_is_regenerated(
    mixed: UPath, counting: Any, tokens: UPath, rows_of: RowsOf, limit: int | None
) -> None:
    before = tokenized_before(mixed, counting, tokens, limit)
    assert (before.clips, before.rejected) == (2, []) and counting.encoded == 2
    after = Tokenizer(counting, tokens).tokenize(mixed, limit)
    names = ["a.wav", "b.flac", "c.wav"][:limit]
    assert [row.clip for row in rows_of(tokens)] == names
    assert [entry.clip for entry in after.rejected] == (["d.mp3"] if limit is None else [])
    assert counting.encoded == 2 + len(names)
    assert Tokenizer(counting, tokens).tokenize(mixed, limit) == after
    assert counting.encoded == 2 + len(names)
    assert after.fingerprint == before.fingerprint
    assert after.content.split()[0] != before.content.split()[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_of_wavs_alone_is_kept_as_it_was(
    tmp_path: Path, pack: Pack, counting: Any, tokens: UPath, members: Members, kind: str
) -> None:
    archive = storage.as_path(pack(tmp_path / "batch_1.zip", members, kind))
    report = tokenized_before(archive, counting, tokens)
    before = [path.read_bytes() for path in shard_paths(tokens, "batch_1")]
    kept = Tokenizer(counting, tokens).tokenize(archive)
    assert (kept.content, kept.clip_suffixes) == (report.content, WAV_ONLY) and counting.encoded == report.clips
    assert [path.read_bytes() for path in shard_paths(tokens, "batch_1")] == before


def test_a_cut_before_any_other_format_is_kept(mixed: UPath, counting: Any, tokens: UPath) -> None:
    tokenized_before(mixed, counting, tokens, limit=1)
    assert Tokenizer(counting, tokens).tokenize(mixed, limit=1).clip_suffixes == WAV_ONLY
    assert counting.encoded == 1


def test_a_trial_does_not_cut_a_shard_that_lacks_other_formats(mixed: UPath, counting: Any, tokens: UPath) -> None:
    tokenized_before(mixed, counting, tokens)
    assert Tokenizer(counting, tokens).tokenize(mixed, limit=1).clips == 2
    assert Tokenizer(counting, tokens).tokenize(mixed).clips == 3


def test_the_digest_of_an_archive_of_wavs_never_changes(tmp_path: Path, pack: Pack) -> None:
    """Shards of earlier versions are kept only with the fingerprint that they had."""
    path = pack(tmp_path / "a.zip", [("a.wav", b"first"), ("x/b.WAV", b"second"), ("a.txt", b"text")])
    assert (
        content_digest(storage.as_path(path))
        == "sha256:2ecd0d5a4d21ea36f1d4046b4e1c431d5f62c58dc1821b71970afc194ffd3a0c"
    )

"""Sources of a shard's descriptions, and that changing them doesn't encode clips again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.codec import Codec
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.captions import load_captions
from musicgen_core.data.shards import ShardReport, read_report, shard_paths
from musicgen_core.tokenizing import Tokenizer
from tests.fixture_types import MakeWav, Pack, RowsOf


def captions_in(folder: Path, **descriptions: str) -> Path:
    lines = [json.dumps({"path": f"{stem}.wav", "description": text}) for stem, text in descriptions.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder / "metadata.jsonl"


def test_descriptions_come_from_the_metadata(
    archive: UPath, codec: Codec, tokens: UPath, tmp_path: Path, rows_of: RowsOf
) -> None:
    captions = load_captions(storage.as_path(captions_in(tmp_path, one="eins", three="🎵 três")))
    Tokenizer(codec, tokens, metadata=captions).tokenize(archive)
    assert [row.description for row in rows_of(tokens)] == ["eins", None, "🎵 três"]


def test_changed_descriptions_are_rewritten_without_encoding(
    archive: UPath, counting: Any, tokens: UPath, tmp_path: Path, rows_of: RowsOf
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
    return dataclasses.replace(report, rejected=tuple(report.rejected), remarks=())  # type: ignore[arg-type]


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


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_sidecars_are_found_before_and_after_their_clips(
    tmp_path: Path, pack: Pack, make_wav: MakeWav, counting: Any, tokens: UPath, kind: str, rows_of: RowsOf
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

from __future__ import annotations

from pathlib import Path

import pytest

from musicgen_core import storage
from musicgen_core.data.dataset import cut_descriptions, load_clips
from musicgen_core.data.groups import clip_hash
from musicgen_core.data.shards import shard_paths
from tests.fixture_types import MakeRow, WriteShard

CODEC = "sha256:codec"


def test_a_copy_of_a_shard_is_left_out_and_named(tmp_path: Path, write_shard: WriteShard, row: MakeRow) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    for stem in ("x (1)", "x", "y"):
        write_shard(tokens, stem, [row("a.wav", 5)], fingerprint="other" if stem == "y" else "same")
    clips = load_clips(tokens, CODEC, tmp_path / "cache")
    assert [int(value) for value in clips.hashes] == [clip_hash("x", "a.wav"), clip_hash("y", "a.wav")]
    assert list(clips.problems()) == ["the shard x (1) is left out: it holds the same archive as x"]


def test_of_two_copies_the_one_with_more_clips_is_taken(tmp_path: Path, write_shard: WriteShard, row: MakeRow) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    write_shard(tokens, "x", [row("a.wav", 5)], fingerprint="same")
    write_shard(tokens, "x fixed", [row("a.wav", 5), row("b.wav", 6)], fingerprint="same")
    clips = load_clips(tokens, CODEC, tmp_path / "cache")
    assert list(clips.fingerprints) == ["x fixed"] and clips.copies == {"x": "x fixed"}


@pytest.mark.parametrize(
    ("began_with", "added"), [(["x", "x (1)"], ["z"]), (["x (1)"], ["x", "z"]), (["x"], ["z"])], ids=str
)
def test_a_run_keeps_the_shards_that_it_began_with(
    tmp_path: Path, write_shard: WriteShard, row: MakeRow, began_with: list[str], added: list[str]
) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    for stem in ("x", "x (1)", "z"):
        write_shard(tokens, stem, [row("a.wav", 5)], fingerprint=stem[0])
    clips = load_clips(tokens, CODEC, tmp_path / "cache", only=began_with)
    assert list(clips.fingerprints) == began_with
    assert list(clips.added) == added
    assert len(list(clips.problems())) == ("x" in began_with and "x (1)" in began_with)


def test_descriptions_shortened_by_training_are_reported(tmp_path: Path, write_shard: WriteShard, row: MakeRow) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    fitting, long = "é" * 2000, "x" * 2001
    write_shard(tokens, "a", [row("fits.wav", 5, fitting), row("long.wav", 5, long), row("none.wav", 5)])
    write_shard(tokens, "b", [row(f"{number}.wav", 6, long) for number in range(3)])
    write_shard(tokens, "c", [row("short.wav", 7, "calm")])
    [sentence] = cut_descriptions(load_clips(tokens, CODEC, tmp_path / "cache"), tokens)
    assert sentence.startswith(
        "4 descriptions of more than 2,000 characters cut to that: a: long.wav, b: 0.wav, b: 1.wav and 1"
    )
    clips = load_clips(tokens, CODEC, tmp_path / "cache")
    for stem in "ab":
        shard_paths(tokens, stem)[0].write_bytes(b"damaged since it was packed")
    assert "a: clip 2, b: clip 1" in cut_descriptions(clips, tokens)[0]
    assert not cut_descriptions(load_clips(tokens, CODEC, tmp_path / "cache", only=["c"]), tokens)

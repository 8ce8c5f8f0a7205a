from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.crops import training_batch, validation_batch
from musicgen_core.data.dataset import Clips, fraction_to_hold_out, load_clips, split
from musicgen_core.data.groups import clip_hash
from musicgen_core.data.shards import Row, shard_paths
from musicgen_core.errors import TokensError
from tests.fixture_types import MakeRow, WriteShard

CODEC = "sha256:codec"
MakeClips = Callable[..., Clips]


@pytest.fixture(scope="session")
def clips_of(write_shard: WriteShard) -> MakeClips:
    """Return clips of these lengths whose codes encode their position: codebook × 500 + frame + 1."""

    def make(frames: Sequence[int], descriptions: Sequence[str | None] | None = None) -> Clips:
        texts = descriptions or [f"clip {index}" for index in range(len(frames))]
        codes = [(np.arange(4)[:, None] * 500 + np.arange(length) + 1).astype(np.uint16) for length in frames]
        rows = [Row(f"{index}.wav", texts[index], 1.0, each) for index, each in enumerate(codes)]
        with tempfile.TemporaryDirectory() as folder:
            tokens = storage.as_path(Path(folder) / "tokens")
            write_shard(tokens, "a", rows)
            return load_clips(tokens, CODEC, Path(folder) / "cache")  # mapped, so they outlive their file

    return make


# Loading


@pytest.fixture(params=["local", "remote"])
def tokens(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path / "tokens") if request.param == "local" else bucket


def test_clips_are_loaded_in_order_of_archives_and_members(
    tokens: UPath, tmp_path: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    second = [row("z.wav", 9, "z"), row("y.wav", 3)]
    first = [row(f"{number}.wav", 5 + number % 3, "x") for number in range(70)]
    write_shard(tokens, "b_2", second)
    write_shard(tokens, "b_1", first)
    write_shard(tokens, "b_1.5", [])  # an archive none of whose clips could be used
    clips = load_clips(tokens, CODEC, tmp_path / "cache")
    assert len(clips) == 72
    for index, expected in enumerate([*first, *second]):
        assert np.array_equal(clips.codes_of(index), expected.codes)
        assert (clips.frames[index], clips.description(index)) == (expected.codes.shape[1], expected.description)
    assert clips.hashes[70] == clip_hash("b_2", "z.wav")
    assert clips.skipped == []


def test_the_order_is_the_same_whatever_is_in_the_cache_already(
    tmp_path: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    for stem in ("b", "d"):
        write_shard(tokens, stem, [row(f"{stem}.wav", 5)])
    load_clips(tokens, CODEC, tmp_path / "cache")
    for stem in ("a", "c", "e"):
        write_shard(tokens, stem, [row(f"{stem}.wav", 5)])
    for cache in ("cache", "fresh"):
        clips = load_clips(tokens, CODEC, tmp_path / cache)
        assert [int(value) for value in clips.hashes] == [clip_hash(stem, f"{stem}.wav") for stem in "abcde"]
        assert list(clips.fingerprints) == list("abcde")


def test_shards_have_fingerprints_of_codes_and_of_captions(
    tmp_path: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    tokens = storage.as_path(tmp_path / "tokens")

    def fingerprints(fingerprint: str, text: str) -> list[str]:
        write_shard(tokens, "a", [row("x.wav", 5, text)], fingerprint=fingerprint, captions_fingerprint=text)
        return load_clips(tokens, CODEC, tmp_path / "cache").fingerprints["a"].split()

    codes, captions = fingerprints("one", "text")
    assert fingerprints("one", "other") == [codes, "other"] != [codes, captions]
    assert fingerprints("two", "text")[0] != codes and fingerprints("two", "text")[1] == captions


def test_shards_that_are_not_whole_are_left_out_and_named(
    tokens: UPath, tmp_path: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    for stem in ("a", "b", "c.d"):
        write_shard(tokens, stem, [row(f"{stem}.wav", 5)])
    shard_paths(tokens, "b")[1].unlink()
    storage.write_text(tokens / "notes.txt", "no shard")
    clips = load_clips(tokens, CODEC, tmp_path / "cache")
    assert clips.skipped == ["b"]
    assert any("the shard b is not whole" in problem for problem in clips.problems())
    assert [int(hash_) for hash_ in clips.hashes] == [clip_hash("a", "a.wav"), clip_hash("c.d", "c.d.wav")]


@pytest.mark.parametrize("kind", ["missing", "empty", "without clips", "not whole"])
def test_an_empty_directory_is_named_with_the_command_to_run(
    tokens: UPath, tmp_path: Path, write_shard: WriteShard, row: MakeRow, kind: str
) -> None:
    if kind == "empty":
        storage.write_text(tokens / "notes.txt", "no shard")
    if kind in ("without clips", "not whole"):
        write_shard(tokens, "a", [] if kind == "without clips" else [row("x.wav", 5)])
    if kind == "not whole":
        shard_paths(tokens, "a")[1].unlink()
    with pytest.raises(TokensError) as refused:
        load_clips(tokens, CODEC, tmp_path / "cache")
    assert str(tokens) in refused.value.found
    assert ("(not whole: a)" in refused.value.found) == (kind == "not whole")
    assert "uv run musicgen-flows tokenize" in refused.value.next_step


def test_codes_of_another_codec_are_refused_naming_the_shard(
    tokens: UPath, tmp_path: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    write_shard(tokens, "a", [row("x.wav", 5)])
    write_shard(tokens, "b", [row("x.wav", 5)], codec="sha256:other")
    for _ in range(2):  # also when they are in the cache
        with pytest.raises(TokensError) as refused:
            load_clips(tokens, CODEC, tmp_path / "cache")
        assert "b.parquet was tokenized with another model" in refused.value.found


def test_a_clip_that_is_not_there_is_an_error(clips_of: MakeClips) -> None:
    clips = clips_of([5, 5])
    for index in (2, -1):
        with pytest.raises(IndexError):
            clips.codes_of(index)


# Splitting

# Spread evenly, as hashes are; hypothesis prefers small numbers.
hashes = st.sets(st.integers(0, 9999), min_size=1, max_size=60).map(
    lambda numbers: [clip_hash("a", str(number)) for number in numbers]
)
fractions = st.sampled_from([0.0, 0.001, 0.05, 0.5, 0.99])


def sides(values: list[int], fraction: float) -> tuple[set[int], set[int]]:
    training, validation = split(np.array(values, dtype=np.uint64), fraction)
    return {values[index] for index in training}, {values[index] for index in validation}


@given(values=hashes, fraction=fractions)
def test_the_split_is_a_partition_with_no_empty_side(values: list[int], fraction: float) -> None:
    training, validation = sides(values, fraction)
    assert training | validation == set(values) and not training & validation
    assert training
    assert bool(validation) == (len(values) >= 2 and fraction > 0)


@given(values=hashes, fraction=fractions)
def test_of_40_clips_or_more_at_least_8_are_held_out(values: list[int], fraction: float) -> None:
    raised = fraction_to_hold_out(np.array(values, dtype=np.uint64), fraction)
    held_out = len(sides(values, raised)[1])
    if len(values) < 40 or not fraction:
        assert raised == fraction
    else:
        assert held_out == max(8, len(sides(values, fraction)[1]))


@given(values=hashes, added=hashes, fraction=fractions)
def test_clips_stay_on_their_side_when_archives_are_added(values: list[int], added: list[int], fraction: float) -> None:
    before, after = sides(values, fraction), sides([*{*values, *added}], fraction)
    for side in (0, 1):
        moved = before[side] - after[side]
        assert not moved or (len(moved) == 1 and moved == before[side])  # one that had to fill its side


@given(values=hashes, fraction=fractions, random=st.randoms(use_true_random=False))
def test_the_order_of_clips_does_not_change_their_side(values: list[int], fraction: float, random: Random) -> None:
    assert sides(random.sample(values, len(values)), fraction) == sides(values, fraction)


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.999])
def test_hashes_at_the_ends_of_their_range_have_a_side(fraction: float) -> None:
    assert sides([0, 2**64 - 1], fraction) == ({2**64 - 1}, {0})


def test_the_share_of_validation_clips_is_the_fraction_asked_for() -> None:
    values = [clip_hash("archive_batch_0001", f"audio/{number}.wav") for number in range(20_000)]
    assert len(sides(values, 0.05)[1]) == pytest.approx(1000, abs=120)


def test_clip_hashes_are_the_same_on_every_machine() -> None:
    assert clip_hash("archive_batch_0001", "audio/x.wav") == 9874430093656066926
    assert clip_hash("a", "b.wav") != clip_hash("b", "b.wav")


# Batches


@settings(deadline=None, max_examples=40)
@given(
    frames=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    segment=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    epoch=st.integers(1, 9),
)
def test_a_batch_holds_a_crop_of_each_clip_padded_at_the_end(
    frames: list[int], segment: int, seed: int, epoch: int, clips_of: MakeClips
) -> None:
    clips = clips_of(frames)
    indices = list(range(len(frames)))[::-1]
    batch = training_batch(clips, indices, segment, 0.0, seed, epoch)
    lengths = [min(frames[index], segment) for index in indices]
    assert batch.frames.tolist() == lengths
    assert batch.codes.shape == (len(frames), 4, max(lengths)) and batch.codes.dtype == torch.int64
    assert batch.texts == [f"clip {index}" for index in indices]
    assert np.array_equal(batch.hashes, clips.hashes[indices])
    for codes, length, index in zip(batch.codes, lengths, indices, strict=True):
        start = int(codes[0, 0]) - 1
        assert 0 <= start <= frames[index] - length
        assert np.array_equal(codes[:, :length], clips.codes_of(index)[:, start : start + length])
        assert not codes[:, length:].any()


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), epoch=st.integers(1, 100))
def test_a_position_in_the_data_determines_its_crop(seed: int, epoch: int, clips_of: MakeClips) -> None:
    clips = clips_of([200, 300, 250])
    together = training_batch(clips, [0, 1, 2], 50, 0.5, seed, epoch)
    for index in range(3):
        alone = training_batch(clips, [index], 50, 0.5, seed, epoch)
        assert torch.equal(alone.codes[0], together.codes[index])
        assert alone.texts[0] == together.texts[index]


def test_crops_begin_everywhere_in_a_clip_over_the_epochs(clips_of: MakeClips) -> None:
    clips = clips_of([13])
    starts = {int(training_batch(clips, [0], 10, 0.0, 0, epoch).codes[0, 0, 0]) - 1 for epoch in range(1, 60)}
    assert starts == {0, 1, 2, 3}


@pytest.mark.parametrize(("probability", "low", "high"), [(0.0, 0, 0), (0.3, 250, 350), (1.0, 1000, 1000)])
def test_texts_are_dropped_with_the_probability_asked_for(
    probability: float, low: int, high: int, clips_of: MakeClips
) -> None:
    clips = clips_of([3] * 100)
    batches = [training_batch(clips, range(100), 2, probability, 0, epoch) for epoch in range(1, 11)]
    assert low <= sum(batch.texts.count(None) for batch in batches) <= high


def test_words_are_dropped_with_the_probability_asked_for(clips_of: MakeClips) -> None:
    clips = clips_of([3, 3], ["word " * 999 + "word", None])
    batch, again = (training_batch(clips, [0, 1], 2, 0.0, 0, 1, word_dropout=0.3) for _ in range(2))
    assert batch.texts == again.texts and batch.texts[1] is None
    assert set((batch.texts[0] or "").split(" ")) == {"word"}
    assert 650 <= len((batch.texts[0] or "").split(" ")) <= 750
    assert training_batch(clips, [0], 2, 0.0, 0, 1, word_dropout=1.0).texts == [""]  # the null condition


def test_a_clip_without_a_description_has_no_text(clips_of: MakeClips) -> None:
    clips = clips_of([5, 5], ["text", None])
    assert training_batch(clips, [0, 1], 5, 0.0, 0, 1).texts == ["text", None]
    assert validation_batch(clips, [0, 1], 5).texts == ["text", None]


def test_validation_sees_the_beginning_of_each_clip(clips_of: MakeClips) -> None:
    clips = clips_of([20, 6])
    batch = validation_batch(clips, [0, 1], 8)
    assert batch.frames.tolist() == [8, 6]
    assert batch.codes[0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batch.codes[1, 3].tolist() == [1501, 1502, 1503, 1504, 1505, 1506, 0, 0]


def test_batches_have_one_shape_if_asked_to(clips_of: MakeClips) -> None:
    clips = clips_of([20, 6])
    for make in (
        lambda columns: training_batch(clips, [1, 0], 8, 0.5, 0, 1, columns),
        lambda columns: validation_batch(clips, [1, 0], 8, columns),
    ):
        batch, wide = make(None), make(11)
        assert (batch.codes.shape, wide.codes.shape) == ((2, 4, 8), (2, 4, 11))
        assert torch.equal(wide.codes[..., :8], batch.codes) and not wide.codes[..., 8:].any()
        assert torch.equal(wide.frames, batch.frames) and wide.texts == batch.texts

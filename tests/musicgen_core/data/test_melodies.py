"""Batches for melody models: each clip's chroma is cropped with its codes, and dropped as the model was trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgen_core import storage
from musicgen_core.data.crops import training_batch, validation_batch
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.data.shards import Row
from musicgen_core.errors import TokensError
from musicgen_core.melody import crop_chroma, match_length
from tests.fixture_types import MakeRow, WriteShard

CODEC = "sha256:codec"
FRAMES = (3000, 400, 2000)


@pytest.fixture(scope="module")
def clips(write_shard: WriteShard) -> Clips:
    """Return clips whose codes encode their position, with random chroma."""
    rng = np.random.default_rng(0)
    rows = [
        Row(
            clip=f"{number}.wav",
            description=f"clip {number}",
            duration=frames / 50,
            codes=(np.arange(4)[:, None] + np.arange(frames) % 2000).astype(np.uint16),
            chroma=rng.integers(0, 12, frames * 640 // 4096 + 1, dtype=np.uint8),
        )
        for number, frames in enumerate(FRAMES)
    ]
    with tempfile.TemporaryDirectory() as folder:
        tokens = storage.as_path(Path(folder) / "tokens")
        write_shard(tokens, "a", rows, chroma="v1/mix")
        return load_clips(tokens, CODEC, Path(folder) / "cache", melody_model="melody")


def test_the_chroma_of_a_crop_is_that_of_its_time(clips: Clips) -> None:
    for epoch in (1, 2, 3):
        batch = training_batch(clips, range(3), 1500, 0.0, 3, epoch, chroma_frames=235)
        assert batch.chroma is not None and (batch.chroma.shape, batch.chroma.dtype) == ((3, 235), torch.int64)
        for index in range(3):
            codes = clips.codes_of(index)
            length = int(batch.frames[index])
            crop = batch.codes[index, :, :length].numpy()
            [start] = [
                begin
                for begin in range(codes.shape[1] - length + 1)
                if codes[0, begin] == crop[0, 0] and np.array_equal(codes[:, begin : begin + length], crop)
            ]
            expected = torch.from_numpy(crop_chroma(clips.chroma_of(index), start, length).astype(np.int64))
            assert torch.equal(batch.chroma[index], match_length(expected, 235))


def test_validation_sees_the_melody_from_the_beginning(clips: Clips) -> None:
    batch = validation_batch(clips, [1, 0], 1500, chroma_frames=235)
    assert batch.chroma is not None
    for row, index in zip(batch.chroma, (1, 0), strict=True):
        assert row.tolist() == np.resize(clips.chroma_of(index)[:235], 235).tolist()


def test_batches_without_a_melody_are_as_before(clips: Clips) -> None:
    plain = training_batch(clips, range(3), 600, 0.5, 3, 1, word_dropout=0.3)
    other = training_batch(clips, range(3), 600, 0.5, 3, 1, word_dropout=0.3, chroma_frames=235, melody_dropout=0.5)
    assert plain.chroma is None and validation_batch(clips, [0], 600).chroma is None
    assert torch.equal(plain.codes, other.codes) and plain.texts == other.texts


def test_melodies_are_dropped_with_the_text_or_alone(clips: Clips) -> None:
    def counts(cfg_dropout: float, melody_dropout: float) -> dict[tuple[bool, bool], int]:
        """Return how often clip 0 has a text, and a melody."""
        found = dict.fromkeys([(True, True), (True, False), (False, True), (False, False)], 0)
        for epoch in range(300):
            batch = training_batch(
                clips, [0], 50, cfg_dropout, 0, epoch, chroma_frames=4, melody_dropout=melody_dropout
            )
            assert batch.chroma is not None
            found[batch.texts[0] is not None, bool(batch.chroma.any())] += 1
        return found

    assert counts(0.0, 0.0)[True, True] >= 299  # a crop may be of class 0 throughout
    assert counts(1.0, 0.0) == {(False, False): 300, (True, True): 0, (True, False): 0, (False, True): 0}
    assert counts(0.0, 1.0)[True, False] == 300
    found = counts(0.3, 0.5)
    assert not found[False, True]
    for kind, share in (((False, False), 0.3), ((True, False), 0.35), ((True, True), 0.35)):
        assert share - 0.08 < found[kind] / 300 < share + 0.08


def test_tokens_without_melodies_are_refused_for_a_melody_model(
    tmp_path: Path, write_shard: WriteShard, row: MakeRow
) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    write_shard(tokens, "a", [row("x.wav", 5)], chroma="v1/mix")
    write_shard(tokens, "b", [row("y.wav", 5)])
    write_shard(tokens, "c", [row("z.wav", 5)])
    with pytest.raises(
        TokensError, match=f"2 shards in {tokens} hold no melodies.*facebook/musicgen-melody"
    ) as refused:
        load_clips(tokens, CODEC, tmp_path / "cache", melody_model="facebook/musicgen-melody")
    assert "b" in refused.value.found and "--model facebook/musicgen-melody" in refused.value.next_step
    assert len(load_clips(tokens, CODEC, tmp_path / "cache")) == 3
    [chosen] = load_clips(tokens, CODEC, tmp_path / "cache", ["a"], "m").fingerprints.values()
    [plain] = load_clips(tokens, CODEC, tmp_path / "cache", ["a"]).fingerprints.values()
    assert chosen != plain


def test_a_clip_without_its_melody_is_named(tmp_path: Path, write_shard: WriteShard, row: MakeRow) -> None:
    tokens = storage.as_path(tmp_path / "tokens")
    write_shard(tokens, "a", [row("x.wav", 5)], chroma="v1/mix")
    clips = load_clips(tokens, CODEC, tmp_path / "cache", melody_model="m")
    with pytest.raises(TokensError, match="clip 1 of the shard a has no melody"):
        validation_batch(clips, [0], 5, chroma_frames=235)

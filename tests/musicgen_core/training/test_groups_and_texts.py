"""Runs hold out whole groups of clips and vary their texts; runs of earlier versions keep their split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from musicgen_core import storage
from musicgen_core.data.crops import training_batch
from musicgen_core.data.dataset import load_clips, split
from musicgen_core.data.shards import Row
from musicgen_core.data.training_text import TextVariation
from musicgen_core.errors import Cancelled
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import load_config
from musicgen_core.training import inputs
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest, TokensOf

SONGS = ("a", "b", "c")


def rows() -> list[Row]:
    """Two clips of each of three songs, with fields."""
    rng = np.random.default_rng(0)
    return [
        Row(
            f"{song}_{number}.wav",
            f"song {song}",
            0.5,
            rng.integers(2048, size=(4, 25), dtype=np.uint16),
            {"genre": song, "bpm": f"{70 + number}"},
        )
        for song in SONGS
        for number in range(2)
    ]


def rows_with_near_duplicates() -> list[Row]:
    """Twelve songs, of which the second half are the first half cut 0.3 s later."""
    rng = np.random.default_rng(1)
    songs = rng.integers(2048, size=(6, 4, 115), dtype=np.uint16)
    return [
        Row(f"song {'abcdef'[index % 6]}{'x' * (index // 6)}.wav", None, 2.0, songs[index % 6][:, start : start + 100])
        for index, start in enumerate([0] * 6 + [15] * 6)
    ]


def adapter(request: TrainRequest) -> dict[str, torch.Tensor]:
    return load_adapter(storage.as_path(request.run_dir) / "lora_weights" / "final_lora.pt").lora


def test_both_clips_of_a_song_are_on_one_side(tokens_of: TokensOf, debug_model: BaseModel) -> None:
    clips = load_clips(storage.as_path(tokens_of(rows())), codec_identity(debug_model))
    training, validation = split(clips.split_keys("groups"), 0.05)
    songs = [{SONGS[index // 2] for index in side.tolist()} for side in (training, validation)]
    assert len(songs[0]) == 2 and len(songs[1]) == 1 and not songs[0] & songs[1]


def test_texts_differ_between_epochs_and_stay_the_same_within_one(tokens_of: TokensOf, debug_model: BaseModel) -> None:
    clips = load_clips(storage.as_path(tokens_of(rows())), codec_identity(debug_model))
    variation = TextVariation(merge_text_p=0.5, drop_desc_p=0.5, drop_other_p=0.5)

    def texts(epoch: int, indices: Sequence[int] = range(6)) -> list[str | None]:
        return training_batch(clips, indices, 25, 0.0, seed=3, epoch=epoch, variation=variation).texts

    assert texts(1) == texts(1) == [text for index in range(6) for text in texts(1, [index])]
    assert len({tuple(texts(epoch)) for epoch in range(1, 9)}) == 8
    assert {text for epoch in range(1, 9) for text in texts(epoch)} > {f"song {song}" for song in SONGS}


def test_a_run_with_varying_texts_resumes_bit_for_bit(
    tokens_of: TokensOf, request_for: MakeRequest, same_weights: Callable[..., None]
) -> None:
    tokens = str(tokens_of(rows()))
    whole = request_for("whole", tokens=tokens, merge_text_p=0.9, cfg_dropout=0.0, word_dropout=0.0)
    train(whole)
    cut = dataclasses.replace(whole, run_dir=f"{whole.run_dir}-cut")
    polls = iter([False, False, True])
    with pytest.raises(Cancelled):
        train(cut, cancelled=lambda: next(polls, True))
    train(cut)
    same_weights(adapter(cut), adapter(whole))
    as_described = request_for("as-described", tokens=tokens, merge_text_p=0.0, cfg_dropout=0.0, word_dropout=0.0)
    train(as_described)
    assert any(not torch.equal(adapter(as_described)[name], tensor) for name, tensor in adapter(whole).items())


def test_near_duplicates_are_on_one_side_of_the_split(tokens_of: TokensOf, debug_model: BaseModel) -> None:
    clips = load_clips(storage.as_path(tokens_of(rows_with_near_duplicates())), codec_identity(debug_model))
    for fraction in np.linspace(0.05, 0.95, 10):
        training, validation = split(clips.split_keys("any_level"), fraction)
        assert len(training) and len(validation) and not set(training % 6) & set(validation % 6)
    training, validation = split(clips.split_keys("groups"), 0.5)
    assert set(training % 6) & set(validation % 6)


def test_clips_that_are_added_behind_others_move_none(tokens_of: TokensOf, debug_model: BaseModel) -> None:
    rows = rows_with_near_duplicates()
    folders = [storage.as_path(tokens_of(some)) for some in (rows[:6], rows)]
    before, after = (load_clips(folder, codec_identity(debug_model)).split_keys("any_level") for folder in folders)
    assert after.tolist() == [*before.tolist(), *before.tolist()]


@pytest.mark.parametrize("split_by", ["clips", "groups"])
def test_a_run_of_an_earlier_version_keeps_its_split(
    split_by: str,
    tokens_of: TokensOf,
    request_for: MakeRequest,
    monkeypatch: pytest.MonkeyPatch,
    same_weights: Callable[..., None],
) -> None:
    tokens = str(tokens_of([*rows(), *rows_with_near_duplicates()]))
    with monkeypatch.context() as earlier:
        earlier.setattr(inputs, "_split_by", lambda start: split_by)
        whole = request_for("whole", tokens=tokens)
        train(whole)
        cut = dataclasses.replace(whole, run_dir=f"{whole.run_dir}-cut")
        train(dataclasses.replace(cut, settings=cut.settings.model_copy(update={"max_steps": 2})))
    train(cut)
    same_weights(adapter(cut), adapter(whole))
    assert load_config(storage.as_path(cut.run_dir)).split_by == split_by
    new = request_for("new", tokens=tokens)
    train(new)
    assert load_config(storage.as_path(new.run_dir)).split_by == "any_level"

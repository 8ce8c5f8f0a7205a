"""Whole runs: their files, and what the adapter learns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_core import storage
from musicgen_core.data.dataset import load_clips
from musicgen_core.errors import AdapterError, TokensError
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import load_config
from musicgen_core.training import inputs
from musicgen_core.training.files.resuming import learned_from
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest, MakeTokens, SameWeights
from tests.musicgen_core.training.conftest import random_clips

FILES = {
    "config.json",
    "latest.pt",
    "loss.png",
    "perplexity.png",
    "learning_rate.png",
    "metrics.jsonl",
    *(f"checkpoint_step_{step}.pt" for step in (2, 4, 6)),
    *(f"full_models/{name}.pt" for name in ("best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2")),
    *(f"lora_weights/{name}_lora.pt" for name in ("best", "final", "latest")),
    *(f"lora_weights/lora_epoch_{epoch}.pt" for epoch in (1, 2)),
}


# What a training leaves


def test_the_run_directory_holds_exactly_these_files(
    uninterrupted: tuple[TrainRequest, TrainResult], left_in: LeftIn
) -> None:
    run_dir = uninterrupted[0].run_dir
    assert left_in(run_dir).files == FILES
    assert not (Path(run_dir) / "samples").exists()  # no sample was asked for


def test_each_step_stands_in_the_metrics_once_with_these_names(
    uninterrupted: tuple[TrainRequest, TrainResult], left_in: LeftIn
) -> None:
    rows = left_in(uninterrupted[0].run_dir).rows
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    of_a_step = {"step", "epoch", "train/loss", "train/lr", "train/grad_norm", "train/skipped_steps"}
    of_a_step |= {"train/audio_seconds_per_sec"}
    of_an_epoch = {"train/epoch_loss", "val/loss", "val/perplexity", "epoch_seconds"}
    of_an_epoch |= {"best/loss", "best/epoch", "best/step"}
    of_an_epoch |= {f"val/{name}_codebook_{k}" for name in ("loss", "perplexity") for k in range(4)}
    assert [row.keys() - of_a_step for row in rows] == [set(), set(), of_an_epoch, set(), set(), of_an_epoch]
    assert all(row.keys() >= of_a_step for row in rows)


def test_the_config_tells_what_was_trained(
    uninterrupted: tuple[TrainRequest, TrainResult], debug_model: BaseModel
) -> None:
    config = json.loads((Path(uninterrupted[0].run_dir) / "config.json").read_text())
    assert config["model_dir"] == str(debug_model.directory)
    assert config["base_model"].rpartition("@")[2] == debug_model.identity.rpartition("@")[2]
    assert (config["lora_r"], config["lora_alpha"], config["batch_size"]) == (8, 32, 2)
    assert config["versions"].keys() >= {"torch", "peft", "audiocraft"}


def test_adapters_say_which_step_they_are_of(uninterrupted: tuple[TrainRequest, TrainResult], left_in: LeftIn) -> None:
    run_dir = uninterrupted[0].run_dir
    folder = storage.as_path(run_dir) / "lora_weights"
    adapters = {name: load_adapter(folder / f"{name}.pt") for name in ("lora_epoch_1", "final_lora", "latest_lora")}
    assert {name: (a.epoch, a.global_step) for name, a in adapters.items()} == {
        "lora_epoch_1": (1, 3),
        "final_lora": (2, 6),
        "latest_lora": (2, 6),
    }
    assert adapters["final_lora"].loss == left_in(run_dir).rows[-1]["train/loss"]


def test_the_result_sums_it_up(uninterrupted: tuple[TrainRequest, TrainResult], left_in: LeftIn) -> None:
    request, result = uninterrupted
    rows = left_in(request.run_dir).rows
    assert (result.steps, result.epochs, result.resumed_from) == (6, 2, 0)
    epochs = [row["train/epoch_loss"] for row in rows if "train/epoch_loss" in row]
    assert (result.first_loss, result.last_loss) == (epochs[0], epochs[-1])
    assert result.best_loss == min(rows[2]["val/loss"], rows[5]["val/loss"])


def test_a_remote_run_directory_gets_every_file(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    tmp_path: Path,
    left_in: LeftIn,
    same_weights: SameWeights,
) -> None:
    remote = f"memory://{tmp_path.name}/runs/one"
    done = train(request_for(run_dir=remote, save_every_steps=2))
    assert done.run_dir == remote
    assert left_in(remote).files == FILES
    assert [row["step"] for row in left_in(remote).rows] == [1, 2, 3, 4, 5, 6]
    same_weights(left_in(remote).adapter(), left_in(uninterrupted[0].run_dir).adapter())


# What is learned


def repeated_clips() -> list[np.ndarray]:
    """Clips of four codes that take turns: easy to learn."""
    return [np.tile(np.array([[i], [40 + i], [80 + i], [120 + i]], dtype=np.uint16), (1, 40)) for i in (1, 2, 3, 4)]


def test_the_loss_falls_where_there_is_something_to_learn(
    request_for: MakeRequest, make_tokens: MakeTokens, left_in: LeftIn
) -> None:
    tokens = make_tokens(repeated_clips() * 40)
    request = request_for(tokens=str(tokens), batch_size=8, num_epochs=2, learning_rate=1e-2, lora_dropout=0)
    result = train(request)
    first, last = (left_in(request.run_dir).rows[index]["train/loss"] for index in (0, -1))
    assert last < 0.5 * first
    assert result.best_loss is not None and result.best_loss < 0.5 * first


def test_the_lowest_validation_loss_is_the_best(
    request_for: MakeRequest, left_in: LeftIn, same_weights: SameWeights
) -> None:
    """On noise, validation gets worse with time, while training gets better."""
    request = request_for(num_epochs=4, learning_rate=5e-2)
    result, left = train(request), left_in(request.run_dir)
    rows = [row for row in left.rows if "val/loss" in row]
    by_epoch = [row["val/loss"] for row in rows]
    best_epoch = int(np.argmin(by_epoch)) + 1
    assert (result.best_epoch, result.best_loss) == (best_epoch, min(by_epoch))
    assert best_epoch != 1 + int(np.argmin([row["train/epoch_loss"] for row in rows]))  # the two would disagree
    same_weights(left.adapter("best_lora"), left.adapter(f"lora_epoch_{best_epoch}"))


def test_one_clip_is_enough_and_the_training_loss_selects(
    request_for: MakeRequest, make_tokens: MakeTokens, left_in: LeftIn
) -> None:
    tokens = make_tokens([np.ones((4, 30), dtype=np.uint16)])
    request = request_for(tokens=str(tokens), num_epochs=3)
    result = train(request)
    rows = left_in(request.run_dir).rows
    assert len(rows) == 3 and not any("val/loss" in row for row in rows)
    assert result.best_loss == min(row["train/epoch_loss"] for row in rows)


def test_a_training_can_start_from_an_adapter(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, left_in: LeftIn
) -> None:
    request = request_for(init_adapter=uninterrupted[0].run_dir, learning_rate=1e-12, max_steps=1)
    train(request)
    final, start = left_in(request.run_dir).adapter(), left_in(uninterrupted[0].run_dir).adapter("best_lora")
    for name, tensor in start.items():
        torch.testing.assert_close(final[name], tensor, atol=1e-7, rtol=0)


def test_few_clips_hold_out_eight_and_a_resumed_run_keeps_its_split(
    request_for: MakeRequest, make_tokens: MakeTokens, debug_model: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"validation_fraction": 0.05, "tokens": str(make_tokens(random_clips(45))), "full_models": "none"}
    trained = train(request_for("new", **asked, max_steps=1))
    config = json.loads((Path(trained.run_dir) / "config.json").read_text())
    assert config["validation_fraction"] == 0.05 < config["held_out_fraction"] < 0.5
    clips = held_out_of(trained, debug_model)
    assert len(clips) == 8
    train(request_for("new", **asked, max_steps=2))
    assert held_out_of(trained, debug_model) == clips

    with monkeypatch.context() as before:  # there was this rule
        before.setattr(inputs, "fraction_to_hold_out", lambda hashes, fraction: fraction)
        old = train(request_for("old", **asked, max_steps=1))
    few = held_out_of(old, debug_model)
    train(request_for("old", **asked, max_steps=2))
    assert held_out_of(old, debug_model) == few < clips


def held_out_of(trained: TrainResult, model: BaseModel) -> set[int]:
    """Hashes of the clips that a run has not learned from, as its config.json says."""
    config = load_config(storage.as_path(trained.run_dir))
    clips = load_clips(storage.as_path(config.tokens), codec_identity(model))
    return set(clips.hashes[~learned_from(clips, [config])].tolist())


@pytest.mark.parametrize(("clips", "is_told"), [(6, True), (40, False)])
def test_a_new_run_says_when_its_clips_are_too_few_to_judge_by(
    request_for: MakeRequest,
    make_tokens: MakeTokens,
    caplog: pytest.LogCaptureFixture,
    clips: int,
    is_told: bool,
) -> None:
    train(request_for(tokens=str(make_tokens(random_clips(clips))), max_steps=1, full_models="none"))
    hint = "6 clips, 1 of them held out: too few for a validation loss that says much."
    assert any(message.startswith(hint) for message in caplog.messages) == is_told
    assert any("too few for a validation loss" in message for message in caplog.messages) == is_told


def test_an_adapter_is_checked_before_a_model_is_looked_for(request_for: MakeRequest, tmp_path: Path) -> None:
    request = replace(request_for(init_adapter=str(tmp_path / "gone_lora.pt")), model=str(tmp_path / "no-model"))
    with pytest.raises(AdapterError, match="there is no adapter"):
        train(request)


@pytest.mark.parametrize("other", [{"lora_r": 4}, {"lora_alpha": 8}])
def test_an_adapter_of_another_shape_is_no_start(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, other: dict[str, Any]
) -> None:
    with pytest.raises(AdapterError, match="lora_r 8 and lora_alpha 32") as refused:
        train(request_for(init_adapter=uninterrupted[0].run_dir, **other))
    assert "--lora-r 8 --lora-alpha 32" in refused.value.next_step


def test_tokens_of_another_codec_are_refused(request_for: MakeRequest, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(repeated_clips(), codec="sha256:0123")
    request = request_for(tokens=str(tokens))
    with pytest.raises(TokensError, match="tokenized with another model, whose codec is not that of this run's model"):
        train(request)
    assert not Path(request.run_dir).exists()

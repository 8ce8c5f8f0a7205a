"""A run that starts from a named checkpoint: later files are set aside, and nothing is lost."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_core import storage
from musicgen_core.errors import Cancelled
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.loop import Trainer
from musicgen_core.training.request import TrainRequest, TrainResult
from musicgen_core.training.train import train
from tests.fixture_types import KillAfter, KilledIn, LeftIn, MakeRequest, SameWeights


def test_a_checkpoint_by_name_sets_later_files_aside(
    uninterrupted: tuple[TrainRequest, TrainResult], request_for: MakeRequest, killed_in: KilledIn, left_in: LeftIn
) -> None:
    request = request_for(save_every_steps=2)
    train(request)
    left = left_in(request.run_dir)
    by_name = dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_2.pt")
    with killed_in("save_checkpoint", 1):
        train(by_name)
    later = {"latest", "checkpoint_step_4", "checkpoint_step_6", "checkpoint_epoch_1", "checkpoint_epoch_2"}
    later |= {"best_lora", "final_lora", "latest_lora", "lora_epoch_1", "lora_epoch_2", "best_model", "final_model"}
    every_file = left_in(uninterrupted[0].run_dir).files
    set_aside = {f"superseded/1/{path}" for path in every_file if Path(path).stem in later}
    here = {"checkpoint_step_2.pt", "config.json", "loss.png", "perplexity.png", "learning_rate.png", "metrics.jsonl"}
    killed_while_saving = {"lora_weights/latest_lora.pt"}
    assert left.files - killed_while_saving == set_aside | here
    train(request)
    assert left.files == every_file | set_aside
    assert left.rows[-1]["train/epoch_loss"] == uninterrupted[1].last_loss
    first, second = (left_in(f"{request.run_dir}/superseded/{number}") for number in (1, 2))
    again = first.contents
    (Path(request.run_dir) / "latest.pt").rename(Path(request.run_dir) / "moved_away")
    train(by_name)
    assert first.contents == again
    assert second.files | {"latest.pt"} == first.files


def test_a_kill_before_files_are_set_aside_loses_no_metrics(
    request_for: MakeRequest,
    nothing_shows: Callable[[str], None],
    killed: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = request_for(num_epochs=1, save_every_steps=2)
    train(request)

    def kill(*_: object) -> None:
        raise killed

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "set_aside_after", kill)
        with pytest.raises(killed):
            train(dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_2.pt"))
    assert train(request_for(save_every_steps=2)).resumed_from == 3
    nothing_shows(request.run_dir)


def test_a_best_within_an_epoch_is_not_confused_with_its_end(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    losses = iter([1.0, 2.0, 3.0, 0.5])  # after steps 2, 3, 4 and 6
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"val/loss": next(losses)})
    request = request_for(validate_every_steps=2, save_every_steps=5)
    assert train(request).best_epoch == 2
    losses = iter([7.0])
    by_name = dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_5.pt")
    assert train(by_name).best_loss == 7.0
    assert "the best is determined afresh" in caplog.text


def test_the_best_of_before_a_named_checkpoint_is_the_best_again(
    request_for: MakeRequest, make_tokens: Callable[..., Path], left_in: LeftIn, same_weights: SameWeights
) -> None:
    repeated = [np.tile(np.array([[i], [40 + i], [80 + i], [120 + i]], dtype=np.uint16), (1, 40)) for i in range(1, 5)]
    tokens = str(make_tokens(repeated * 4))  # there is something to learn: each epoch is better than the one before
    request = request_for(tokens=tokens, num_epochs=3, lora_dropout=0)
    assert train(request).best_epoch == 3
    by_name = dataclasses.replace(request, resume=f"{request.run_dir}/full_models/checkpoint_epoch_2.pt")
    best_model = Path(request.run_dir) / "full_models" / "best_model.pt"

    def once_it_is_written() -> bool:
        deadline = time.monotonic() + 120
        while not best_model.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return True

    with pytest.raises(Cancelled):  # before a third epoch could be better
        train(by_name, cancelled=once_it_is_written)
    left = left_in(request.run_dir)
    same_weights(left.adapter("best_lora"), left.adapter("lora_epoch_2"))
    same_weights(left.full_model("best_model"), left.full_model("checkpoint_epoch_2"))


def test_going_back_in_an_object_store_fetches_no_full_model(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left_in: LeftIn
) -> None:
    request = request_for(run_dir=f"memory://{tmp_path.name}/run", save_every_steps=2)
    train(request)
    root, fetched, whole = storage.as_path(request.run_dir), list[str](), storage.staged

    def staged(path: Any) -> Any:
        fetched.append(path.name)
        return whole(path)

    monkeypatch.setattr(storage, "staged", staged)
    files = RunDirectory(root, tmp_path / "stage")
    assert files.set_aside_after(4, 1) == root / "superseded" / "1"
    here = {name for name in left_in(request.run_dir).files if not name.startswith("superseded")}
    assert here >= {"full_models/checkpoint_epoch_1.pt", "checkpoint_step_4.pt", "lora_weights/lora_epoch_1.pt"}
    assert not here & {"full_models/checkpoint_epoch_2.pt", "checkpoint_step_6.pt", "latest.pt"}
    assert not [name for name in fetched if name.startswith("checkpoint")]


def test_a_checkpoint_of_elsewhere_starts_a_new_directory(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    left_in: LeftIn,
    same_weights: SameWeights,
) -> None:
    elsewhere = left_in(uninterrupted[0].run_dir)
    before = elsewhere.contents
    checkpoint = f"{elsewhere.run_dir}/full_models/checkpoint_epoch_1.pt"
    request = request_for("new", resume=checkpoint, save_every_steps=2)
    train(request)
    new = left_in(request.run_dir)
    same_weights(new.adapter(), elsewhere.adapter())
    assert "lora_weights/best_lora.pt" in new.files
    assert elsewhere.contents == before


def test_repeating_a_start_from_a_named_checkpoint_resumes_the_run(
    uninterrupted: tuple[TrainRequest, TrainResult],
    request_for: MakeRequest,
    killed_after: KillAfter,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whether the checkpoint was of elsewhere or of its own directory."""
    elsewhere = request_for("new", resume=f"{uninterrupted[0].run_dir}/checkpoint_step_2.pt", save_every_steps=2)
    own = request_for("new", resume=str(Path(elsewhere.run_dir) / "checkpoint_step_4.pt"), save_every_steps=2)
    for request in (elsewhere, own):
        killed_after(request, 5)
        assert train(request).resumed_from == 5
    caplog.set_level(logging.INFO)
    assert train(own).resumed_from == 6
    assert "to restart from there, move latest.pt away" in caplog.text
    (Path(own.run_dir) / "latest.pt").unlink()
    assert train(own).resumed_from == 4

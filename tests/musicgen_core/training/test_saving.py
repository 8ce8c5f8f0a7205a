"""The files of a run directory, and their mirror."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.errors import Cancelled, ConfigError, RunDirectoryError
from musicgen_core.model.adapters import load_adapter
from musicgen_core.model.lora import merged_checkpoint
from musicgen_core.model.weights import find_model
from musicgen_core.training.files import saving
from musicgen_core.training.files.run_lock import RunLock
from musicgen_core.training.loop import Trainer
from musicgen_core.training.train import train
from tests.fixture_types import LeftIn, MakeRequest

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.mark.parametrize(
    ("keep_last", "steps", "epochs"), [(1, {6}, {3}), (2, {4, 6}, {2, 3}), (9, {2, 4, 6}, {1, 2, 3})]
)
def test_the_newest_checkpoints_are_kept_and_everything_else(
    request_for: MakeRequest, keep_last: int, steps: set[int], epochs: set[int], left_in: LeftIn
) -> None:
    request = request_for(num_epochs=3, max_steps=7, save_every_steps=2, keep_last=keep_last)
    train(request)
    files = left_in(request.run_dir).files
    assert {name for name in files if "checkpoint_step" in name} == {f"checkpoint_step_{step}.pt" for step in steps}
    assert left_in(request.run_dir).full_models == {
        "best_model",
        "final_model",
        *(f"checkpoint_epoch_{epoch}" for epoch in epochs),
    }
    assert files >= {"latest.pt", *(f"lora_weights/lora_epoch_{epoch}.pt" for epoch in (1, 2, 3))}


@pytest.mark.parametrize(("kept", "names"), [("best_and_final", {"best_model", "final_model"}), ("none", set())])
def test_full_models_are_written_as_asked(
    request_for: MakeRequest, kept: str, names: set[str], left_in: LeftIn
) -> None:
    request = request_for(full_models=kept)
    train(request)
    assert left_in(request.run_dir).full_models == names
    assert "lora_weights/final_lora.pt" in left_in(request.run_dir).files


def test_plots_are_not_drawn_after_every_short_epoch(request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    pictures_of = tracking.pictures_of

    def noted(rows: Any) -> Any:
        drawn.append(len(rows))
        return pictures_of(rows)

    monkeypatch.setattr(tracking, "pictures_of", noted)
    train(request_for("short"))
    assert drawn == [6]
    monkeypatch.setattr(saving, "PICTURES_EVERY_SECONDS", 0.0)
    train(request_for("long"))
    assert drawn[1:] == [3, 6, 6]


def test_an_epochs_full_model_can_be_resumed_from_and_owes_nothing(request_for: MakeRequest) -> None:
    request = request_for()
    train(request)
    values = torch.load(Path(request.run_dir) / "full_models" / "checkpoint_epoch_1.pt", weights_only=True)
    assert {"xp.cfg", "best_state", "resume"} <= values.keys()
    assert values["resume"]["progress"]["step"] == 3 and values["resume"]["owed"] == []


def test_the_best_between_two_epochs_is_saved_like_that_of_an_epoch(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation gets worse after step 2, the first of three in each epoch that validates."""
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"val/loss": next(losses)})
    request = request_for(validate_every_steps=2)
    result = train(request)
    best = load_adapter(storage.as_path(request.run_dir) / "lora_weights" / "best_lora.pt")
    assert (result.best_loss, best.global_step, best.epoch) == (1.0, 2, 1)
    expected = merged_checkpoint(find_model(request.model), best)["best_state"]
    written = torch.load(Path(request.run_dir) / "full_models" / "best_model.pt", weights_only=True)["best_state"]
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert not (Path(request.run_dir) / "owed").exists()


def test_a_training_without_a_best_ends_well_in_an_object_store(
    request_for: MakeRequest, monkeypatch: pytest.MonkeyPatch, bucket: UPath
) -> None:
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"val/loss": float("nan")})
    assert train(request_for(run_dir=str(bucket / "run"))).best_loss is None


def test_half_written_files_of_a_killed_training_are_deleted(request_for: MakeRequest, left_in: LeftIn) -> None:
    request = request_for(max_steps=1)
    for name in ("full_models/best_model.pt.77-0123abcd.partial", "latest.pt.77-0123abcd.partial"):
        path = Path(request.run_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    train(request)
    assert not [name for name in left_in(request.run_dir).files if name.endswith(".partial")]


# What changed


def test_new_settings_apply_and_their_change_is_logged(
    request_for: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    train(request_for(num_epochs=1, weight_decay=0.01))
    with caplog.at_level(logging.INFO):
        train(request_for(num_epochs=2, weight_decay=0.5, learning_rate=2e-3))
    for text in ("weight_decay was 0.01 and is 0.5", "num_epochs was 1 and is 2", "learning_rate was 0.001 and is"):
        assert text in caplog.text
    run_dir = Path(request_for().run_dir)
    (group,) = torch.load(run_dir / "latest.pt", weights_only=True)["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.5
    assert json.loads((run_dir / "config.json").read_text())["weight_decay"] == 0.5


# A second copy


def test_what_matters_is_copied_and_the_copy_can_be_gone_on_with(
    request_for: MakeRequest, bucket: UPath, left_in: LeftIn
) -> None:
    request = request_for(copy_to=str(bucket / "copy"), num_epochs=1)
    train(request)
    copied = {"config.json", "metrics.jsonl", "loss.png", "latest.pt"}
    copied |= {f"lora_weights/{kind}_lora.pt" for kind in ("best", "final", "latest")}
    assert left_in(str(bucket / "copy")).files == copied
    for name in copied:
        assert (bucket / "copy" / name).read_bytes() == (Path(request.run_dir) / name).read_bytes()
    shutil.rmtree(request.run_dir)
    result = train(request_for(run_dir=str(bucket / "copy"), num_epochs=2))
    assert (result.resumed_from, result.steps) == (3, 6)


def test_the_copy_is_kept_up_while_the_training_goes_on(request_for: MakeRequest, tmp_path: Path) -> None:
    copied = tmp_path / "copy" / "lora_weights" / "latest_lora.pt"

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 5:
            deadline = time.monotonic() + 120
            while not copied.exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert load_adapter(storage.as_path(copied)).global_step == 3

    train(request_for(copy_to=str(tmp_path / "copy")), on_step=on_step)
    assert load_adapter(storage.as_path(copied)).global_step == 6


def test_the_mirror_follows_a_run_that_goes_back_and_keeps_old_files(
    request_for: MakeRequest, bucket: UPath, left_in: LeftIn
) -> None:
    request = request_for(copy_to=str(bucket / "copy"), save_every_steps=2)
    train(request)
    copy = bucket / "copy"
    before = {name: (copy / name).read_bytes() for name in left_in(str(copy)).files if name.endswith(".pt")}
    with pytest.raises(Cancelled):
        train(dataclasses.replace(request, resume=f"{request.run_dir}/checkpoint_step_2.pt"), cancelled=lambda: True)
    assert {name: (copy / "superseded" / "1" / name).read_bytes() for name in before} == before
    weights = {name for name in left_in(str(copy)).files if name.endswith(".pt") and "superseded" not in name}
    assert weights == {"latest.pt", "lora_weights/latest_lora.pt"}
    assert load_adapter(copy / "lora_weights" / "latest_lora.pt").global_step == 2


def test_a_failed_mirror_is_reported_and_the_run_succeeds(request_for: MakeRequest, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = train(request_for(copy_to=str(tmp_path / "file" / "copy"), max_steps=2))
    assert result.steps == 2
    assert any("copy" in warning for warning in result.warnings)


def test_a_copy_into_the_run_directory_is_refused(request_for: MakeRequest) -> None:
    request = request_for()
    with pytest.raises(ConfigError, match="lies in the run directory"):
        train(request_for(copy_to=f"{request.run_dir}/copy"))


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_copy_into_another_runs_directory_is_refused_by_name(
    place: str, request_for: MakeRequest, tmp_path: Path, bucket: UPath, left_in: LeftIn
) -> None:
    other = str(tmp_path / "other" if place == "local" else bucket / "other")
    train(request_for(run_dir=other, max_steps=1))
    before = left_in(other).contents
    with pytest.raises(RunDirectoryError, match=r"--copy-to .*other holds another run .*wandb_id"):
        train(request_for(copy_to=other, max_steps=1))
    assert left_in(other).contents == before


def test_a_run_without_its_config_continues_without_a_copy(request_for: MakeRequest, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    request = request_for(copy_to=str(copy), max_steps=1)
    train(request)
    (Path(request.run_dir) / "config.json").write_bytes(b"\xff damaged")
    before = (copy / "latest.pt").read_bytes()
    result = train(request_for(copy_to=str(copy), max_steps=2))
    assert result.steps == 2 and any("holds another run" in text for text in result.warnings)
    assert (copy / "latest.pt").read_bytes() == before


def test_a_copy_over_files_of_another_program_is_refused(request_for: MakeRequest, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"my": "settings"}')
    with pytest.raises(RunDirectoryError, match=r"would write over .*mine/config.json"):
        train(request_for(copy_to=str(tmp_path / "mine"), max_steps=1))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["config.json"]


def test_a_copy_is_locked_while_the_run_lasts(request_for: MakeRequest, tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    def on_step(row: dict[str, float]) -> None:
        if row["step"] == 1:
            with pytest.raises(RunDirectoryError, match=r"already active in .*copy"), RunLock(UPath(copy)):
                pass

    request = request_for(copy_to=str(copy), max_steps=2)
    train(request, on_step=on_step)
    assert not (copy / ".lock").exists()
    with RunLock(UPath(copy)), pytest.raises(RunDirectoryError, match=r"already active in .*copy"):
        train(request_for(copy_to=str(copy), max_steps=3))
    assert train(request_for(copy_to=str(copy), max_steps=3)).warnings == ()


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "loss.png", "lora_weights/best_lora.pt", "samples/epoch_000_00.wav"]
)
def test_a_run_directory_with_files_of_others_is_refused(name: str, request_for: MakeRequest) -> None:
    request = request_for(max_steps=1)
    file = Path(request.run_dir) / name
    file.parent.mkdir(parents=True)
    file.write_text('{"not": "ours"}')
    with pytest.raises(RunDirectoryError, match=f"would write over .*{name}"):
        train(request)
    assert file.read_text() == '{"not": "ours"}'


@pytest.mark.parametrize("name", ["samples", "lora_weights", "owed", "full_models", "superseded"])
def test_a_file_where_a_folder_belongs_is_refused_by_name(name: str, request_for: MakeRequest) -> None:
    request = request_for(max_steps=1)
    Path(request.run_dir).mkdir(parents=True)
    (Path(request.run_dir) / name).write_text("notes")
    with pytest.raises(RunDirectoryError, match=f"{name} is not a directory"):
        train(request)
    assert (Path(request.run_dir) / name).read_text() == "notes"

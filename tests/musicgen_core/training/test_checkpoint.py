from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import BinaryIO

import pytest
import torch
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import RunDirectoryError
from musicgen_core.model.adapters import Adapter, AdapterConfig, save_adapter
from musicgen_core.model.trained_model import tensors_of
from musicgen_core.run_layout import RunConfig
from musicgen_core.training.files.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from musicgen_core.training.files.full_models import write_full_model
from musicgen_core.training.files.run_directory import RunDirectory


def checkpoint_of(step: int) -> Checkpoint:
    lora = {"lora_A": torch.full((2, 3), float(step))}
    adapter = Adapter(
        lora, AdapterConfig(2, 4.0).plain(), epoch=1, global_step=step, loss=0.5, base_model="debug@sha256:0"
    )
    optimizer = {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.ones(2, 3)}}, "param_groups": [{}]}
    return Checkpoint(adapter, optimizer, Progress(step, 0.5, 1.5, 3, 0.4, 1, {"step": step, "train/loss": 0.5}))


@pytest.fixture(params=["local", "remote"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> RunDirectory:
    root = storage.as_path(tmp_path / "run" if request.param == "local" else f"memory://{tmp_path.name}/run")
    return RunDirectory(root, tmp_path / "run")


def damage(path: UPath) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def save_epoch(files: RunDirectory, epoch: int, step: int) -> None:
    full = {"best_state": {"w": torch.ones(2)}, "resume": checkpoint_of(step).to_plain()}
    write_full_model(full, files.full_model(f"checkpoint_epoch_{epoch}"), Event())


def found_step(files: RunDirectory) -> int:
    found = files.find_checkpoint()
    assert found is not None
    return found[0].progress.step


def test_a_checkpoint_comes_back_as_it_was_saved(files: RunDirectory) -> None:
    saved = checkpoint_of(7)
    save_checkpoint(saved, files.latest)
    loaded = load_checkpoint(files.latest)
    assert loaded.progress == saved.progress
    assert torch.equal(tensors_of(loaded.learned)["lora_A"], tensors_of(saved.learned)["lora_A"])
    assert torch.equal(loaded.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"])
    assert loaded.learned.base_model == saved.learned.base_model


def test_a_loaded_checkpoint_outlives_its_file(files: RunDirectory) -> None:
    save_checkpoint(checkpoint_of(1), files.latest)
    loaded = load_checkpoint(files.latest)
    files.latest.write_bytes(b"\0" * len(files.latest.read_bytes()))
    assert torch.equal(tensors_of(loaded.learned)["lora_A"], torch.full((2, 3), 1.0))


def test_an_empty_directory_has_no_checkpoint(files: RunDirectory) -> None:
    assert files.find_checkpoint() is None
    assert not files.has_training()


def test_the_newest_is_latest(files: RunDirectory) -> None:
    for step in (2, 4):
        save_checkpoint(checkpoint_of(step), files.step_checkpoint(step))
    save_checkpoint(checkpoint_of(5), files.latest)
    assert files.has_training()
    assert found_step(files) == 5


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_without_latest_the_one_before_is_the_newest(files: RunDirectory, how: str) -> None:
    save_checkpoint(checkpoint_of(2), files.step_checkpoint(2))
    save_epoch(files, 1, step=3)
    save_checkpoint(checkpoint_of(10), files.step_checkpoint(10))
    if how == "damaged":
        save_checkpoint(checkpoint_of(11), files.latest)
        damage(files.latest)
    assert found_step(files) == 10
    damage(files.step_checkpoint(10))
    assert found_step(files) == 3


def test_the_checkpoint_before_is_found_by_step_not_by_time(tmp_path: Path) -> None:
    files = RunDirectory(storage.as_path(tmp_path), tmp_path)
    save_epoch(files, 1, step=12)
    for step in (2, 10):
        save_checkpoint(checkpoint_of(step), files.step_checkpoint(step))
    for path in tmp_path.rglob("*.pt"):
        os.utime(path, (1e9, 1e9))
    assert found_step(files) == 12


def flip_a_bit_of_a_tensor(path: UPath) -> None:
    content = path.read_bytes()
    place = content.index(struct.pack("<6f", *[5.0] * 6))
    path.write_bytes(content[: place + 3] + bytes([content[place + 3] ^ 1]) + content[place + 4 :])


def save_nan_moments(path: UPath) -> None:
    checkpoint = checkpoint_of(5)
    checkpoint.optimizer["state"][0]["exp_avg"][1, 2] = math.nan
    save_checkpoint(checkpoint, path)


def replace_by_a_pipe(path: UPath) -> None:
    path.unlink()
    os.mkfifo(str(path))


def replace_by_other_values(path: UPath) -> None:
    with storage.publish(path) as local:
        torch.save({"optimizer": [], "global_step": "5"}, local)


@pytest.mark.parametrize("how", [flip_a_bit_of_a_tensor, save_nan_moments, replace_by_a_pipe, replace_by_other_values])
def test_the_one_before_is_used_where_latest_is_not_whole(files: RunDirectory, how: Callable[[UPath], None]) -> None:
    if how is replace_by_a_pipe and not storage.is_local(files.root):
        pytest.skip("a bucket holds no pipes")
    save_checkpoint(checkpoint_of(2), files.step_checkpoint(2))
    save_checkpoint(checkpoint_of(5), files.latest)
    how(files.latest)
    assert found_step(files) == 2
    assert files.files_after(2) == [files.latest]


def test_where_all_are_damaged_it_is_said_and_nothing_starts_afresh(files: RunDirectory) -> None:
    save_checkpoint(checkpoint_of(2), files.step_checkpoint(2))
    save_checkpoint(checkpoint_of(3), files.latest)
    damage(files.latest)
    damage(files.step_checkpoint(2))
    with pytest.raises(RunDirectoryError, match=r"no checkpoint .* can be read") as error:
        files.find_checkpoint()
    assert "latest.pt" in error.value.found and "--init-adapter" in error.value.next_step


@pytest.mark.parametrize("name", ["best_lora", "best_model"])
def test_weights_alone_are_no_checkpoint_and_init_adapter_is_named(files: RunDirectory, name: str) -> None:
    path = files.adapter(name) if name == "best_lora" else files.full_model(name)
    if name == "best_lora":
        save_adapter(checkpoint_of(3).learned, path)
    else:
        write_full_model({"xp.cfg": "", "best_state": {"w": torch.ones(2)}}, path, Event())
    with pytest.raises(RunDirectoryError, match=name) as refused:
        load_checkpoint(path)
    assert "not what resuming needs" in refused.value.found and "--init-adapter" in refused.value.next_step


def test_a_missing_checkpoint_is_named(files: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"there is no checkpoint .*checkpoint_step_9\.pt"):
        load_checkpoint(files.step_checkpoint(9))


def test_a_crash_while_publishing_keeps_the_previous_file(
    files: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(checkpoint_of(1), files.latest)

    def crash(values: object, file: BinaryIO) -> None:
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(checkpoint_of(2), files.latest)
    assert found_step(files) == 1
    assert [path.name for path in files.root.iterdir()] == ["latest.pt"]


def test_files_of_later_steps_include_their_full_models(files: RunDirectory) -> None:
    for step in (2, 4, 6):
        save_checkpoint(checkpoint_of(step), files.step_checkpoint(step))
    save_checkpoint(checkpoint_of(6), files.latest)
    for epoch, step in ((1, 3), (2, 6)):
        save_epoch(files, epoch, step)
        save_adapter(checkpoint_of(step).learned, files.adapter(f"lora_epoch_{epoch}"))
    for kind, step in (("best", 3), ("final", 6)):
        save_adapter(checkpoint_of(step).learned, files.adapter(f"{kind}_lora"))
        write_full_model({"best_state": {}}, files.full_model(f"{kind}_model"), Event())
    damage(files.step_checkpoint(2))
    assert {path.name for path in files.files_after(4)} == {
        "latest.pt",
        "checkpoint_step_6.pt",
        "checkpoint_epoch_2.pt",
        "lora_epoch_2.pt",
        "final_lora.pt",
        "final_model.pt",
    } | ({"checkpoint_step_2.pt"} if storage.is_local(files.root) else set())  # a remote one isn't fetched to look


@pytest.mark.parametrize("content", [b'{"lora_r"', b"\xff\xfe", b"[1, 2]", b"null"])
def test_a_damaged_config_counts_as_absent_and_is_kept(
    files: RunDirectory, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    assert files.read_config() is None
    files.write_config({"lora_r": 8})
    assert files.read_config() == RunConfig({"lora_r": 8}) and not caplog.records
    files.config.write_bytes(content)
    assert files.read_config() is None
    assert "config.json can't be read" in caplog.text
    for value in (9, 10):
        files.write_config({"lora_r": value, "loss": math.nan})
    assert files.read_config() == RunConfig({"lora_r": 10, "loss": None})
    assert (files.root / "config.damaged-1.json").read_bytes() == content
    assert not (files.root / "config.damaged-2.json").exists()

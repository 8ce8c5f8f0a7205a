"""Scheduled retraining: its initial adapter, and when there is nothing to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect.client.schemas.objects import State
from upath import UPath

from flows.retraining import last_completed, new_archives
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError
from musicgen_core.model.adapters import load_adapter
from musicgen_core.stages import heard_by
from tests.run_directories import steps

pytestmark = pytest.mark.usefixtures("blank_plots")

QUICK: dict[str, Any] = {
    "model": "debug",
    "device": "cpu",
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "segment_seconds": 1.0,
    "num_epochs": 1,
    "full_models": "none",
}
AGAIN = {"init_from_latest": True, "only_new_tokens": True}


@pytest.fixture(scope="module")
def tokens(prefect_server: None, tmp_path_factory: pytest.TempPathFactory, demo_archives: Path) -> Path:
    """Return two complete shards. Read-only."""
    folder = tmp_path_factory.mktemp("tokens")
    tokenize_archives(archives=str(demo_archives), tokens=str(folder), model="debug", device="cpu")
    return folder


@pytest.fixture
def shards(tokens: Path, tmp_path: Path) -> Path:
    """Return a copy of the first shard alone."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    return add_shard(1, tokens, folder)


@pytest.fixture(scope="module")
def trained(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory of a completed training run on the first shard; tests copy it."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tokens").mkdir()
    state = train(add_shard(1, tokens, folder / "tokens"), folder / "first", **AGAIN)
    assert state.name == "Completed"  # no earlier run, so it starts from the base model
    return folder / "first"


def add_shard(number: int, tokens: Path, folder: Path) -> Path:
    for path in tokens.glob(f"archive_batch_000{number}.*"):
        shutil.copy(path, folder)
    return folder


def train(shards: Path, run_dir: Path, **parameters: Any) -> State[Any]:
    return train_lora(tokens=str(shards), run_dir=str(run_dir), return_state=True, **(QUICK | parameters))


def test_a_retraining_skips_or_continues_from_the_last_adapter(
    tokens: Path, shards: Path, trained: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "first")
    for path in list(shards.iterdir()):  # copies of an archive are not new
        shutil.copy(path, path.with_stem(f"{path.stem} (1)"))
    idle = train(shards, runs / "idle", **AGAIN)
    assert (idle.type.value, idle.name) == ("COMPLETED", "Skipped")
    assert str(idle.message) == f"Nothing to do: first has learned from everything in {shards}"
    assert idle.result().run_dir == str(runs / "first")
    assert not (runs / "idle").exists()

    add_shard(2, tokens, shards)
    # A learning rate that leaves everything as it was shows what it began with.
    frozen = {"learning_rate": 1e-30, "weight_decay": 0.0}
    assert train(shards, runs / "second", **AGAIN, **frozen).name == "Completed"
    final = [load_adapter(UPath(runs / name / "lora_weights" / "final_lora.pt")).lora for name in ("first", "second")]
    assert all(torch.allclose(final[1][name], value, atol=1e-12) for name, value in final[0].items())
    assert any(bool(value.any()) for name, value in final[0].items() if "lora_B" in name)  # the first has learned

    assert train(shards, runs / "third", **AGAIN).name == "Skipped"


def test_a_retry_resumes_its_own_run_directory(tokens: Path, shards: Path, trained: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "first")
    add_shard(2, tokens, shards)
    assert train(shards, runs / "second", **AGAIN, max_steps=2).name == "Completed"
    shutil.rmtree(runs / "second" / "lora_weights")  # as if it had been killed before the end
    shutil.copytree(trained, runs / "other")
    shards_seen = json.loads((runs / "second" / "config.json").read_text())
    (runs / "other" / "config.json").write_text(json.dumps(shards_seen))  # it was trained on everything

    again = train(shards, runs / "second", **AGAIN)
    assert again.name == "Completed"
    assert again.result().resumed_from == 2
    assert steps(runs / "second") == list(range(1, again.result().steps + 1))


def test_only_completed_trainings_of_the_same_model_count(shards: Path, trained: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for age, name in ((100, "older"), (50, "newer")):
        shutil.copytree(trained, runs / name)
        os.utime(runs / name / "lora_weights" / "final_lora.pt", (time.time() - age,) * 2)
    (runs / "cut off").mkdir()
    (runs / "cut off" / "config.json").write_text("{")
    shutil.copytree(runs / "newer", runs / "unfinished")
    (runs / "unfinished" / "lora_weights" / "final_lora.pt").unlink()
    here, nowhere = UPath(runs), UPath(runs / "none")
    newest = last_completed(here, "debug", nowhere)
    assert newest is not None and newest.directory.name == "newer"
    assert new_archives(UPath(shards), newest) == []
    before = last_completed(here, "debug", UPath(runs / "newer"))  # never itself
    assert before is not None and before.directory.name == "older"
    assert last_completed(here, "facebook/musicgen-large", nowhere) is None
    assert last_completed(nowhere, "debug", nowhere) is None


@pytest.mark.parametrize("field", ["fingerprint", "captions_fingerprint"])
def test_a_shard_with_other_codes_or_descriptions_is_new(
    shards: Path, trained: Path, tmp_path: Path, field: str
) -> None:
    last = last_completed(UPath(trained.parent), "debug", UPath(tmp_path / "none"))
    assert last is not None and new_archives(UPath(shards), last) == []
    marker = shards / "archive_batch_0001.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {field: "another"}))
    assert new_archives(UPath(shards), last) == ["archive_batch_0001"]
    (shards / "archive_batch_0001.parquet").unlink()  # an incomplete shard is unusable
    assert new_archives(UPath(shards), last) == []


def test_a_retraining_with_another_lora_shape_starts_from_scratch(
    shards: Path, trained: Path, tokens: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "first")
    add_shard(2, tokens, shards)
    assert train(shards, tmp_path / "second", **AGAIN, lora_r=4).name == "Completed"
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert (config["lora_r"], config["init_adapter"]) == (4, None)
    last = last_completed(UPath(tmp_path), "debug", UPath(tmp_path / "second"))
    assert last is not None
    assert last.lora_differences(TrainSettings(lora_r=4, lora_dropout=0.5)) == ["lora_r was 8 and is 4"]


def test_tokens_of_another_codec_are_refused_before_the_model(shards: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    with heard_by(lambda stage: stages.append(str(stage))):
        state = train(shards, tmp_path / "runs" / "first", model="demo")
    assert "was tokenized with the model debug, whose codec is not that of demo" in str(state.message)
    assert "Give model debug" in str(state.message)
    assert not stages and not (tmp_path / "runs").exists()


def test_two_initial_adapters_are_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both init_adapter and init_from_latest"):
        train(shards, tmp_path / "run", init_adapter="x_lora.pt", init_from_latest=True).result()


PARENT = """
import os, subprocess, sys, threading
for _ in range(50):  # each of which the kernel tells the child of
    threading.Thread(target=threading.Event().wait, daemon=True).start()
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=sys.stdout)
child.wait()
"""
CHILD = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: print("terminated", flush=True))
from flows.startup import end_with_worker
end_with_worker()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells children")
@pytest.mark.parametrize("role", ["worker", "shell"])
def test_a_run_is_terminated_when_its_worker_dies(role: str) -> None:
    environment = os.environ | ({"PREFECT__WORKER_NAME": "w"} if role == "worker" else {})
    command = [sys.executable, "-c", PARENT, CHILD, role]
    parent = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.wait()
    if role == "worker":
        assert parent.stdout.readline() == "terminated\n"
    time.sleep(0.5)  # in case of a signal that must not arrive
    parent.stdin.close()  # which ends the child
    assert parent.stdout.read() == ""
    parent.stdout.close()

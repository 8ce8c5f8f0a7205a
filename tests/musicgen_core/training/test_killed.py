"""Runs in real processes, killed at random moments: the result is identical to that of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_core import storage, tracking
from musicgen_core.data.shards import Row
from musicgen_core.model.adapters import load_adapter
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest, TokensOf

SCRIPT = Path(__file__).with_name("killed_training.py")


def run(plan: dict[str, Any], request: TrainRequest, folder: Path) -> dict[str, Any]:
    settings = request.settings.model_dump(mode="json")
    values = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    file = folder / "plan.json"
    file.write_text(json.dumps({**plan, "request": {**values, "settings": settings}}))
    environment = {**os.environ, "WANDB_MODE": plan["wandb"], "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file)], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "could not be" not in done.stderr, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def tree(root: str) -> set[str]:
    """Files of a run directory, but WandB's, which has one more with each restart."""
    names = {str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("wandb/")}


def without_times(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if "sec" not in name}


def assert_nothing_shows(run_dir: str, expected: str) -> None:
    assert tree(run_dir) == tree(expected)
    rows, wanted = (tracking.read_metrics(Path(root) / "metrics.jsonl") for root in (run_dir, expected))
    assert [without_times(row) for row in rows] == [without_times(row) for row in wanted]
    for name in sorted(tree(expected)):
        if name.startswith("lora_weights/"):
            one, other = (load_adapter(storage.as_path(root) / name) for root in (run_dir, expected))
            assert one.global_step == other.global_step and one.loss == other.loss
            assert all(torch.equal(one.lora[key], other.lora[key]) for key in other.lora)
        if name.startswith("full_models/"):
            one, other = (
                torch.load(Path(root) / name, weights_only=True)["best_state"] for root in (run_dir, expected)
            )
            assert all(torch.equal(one[key], other[key]) for key in other)


def killed(request: TrainRequest, folder: Path, **plan: Any) -> dict[str, Any]:
    usual = {"terms": True, "life_steps": 3, "early_seconds": 0.6, "step_seconds": 0.02, "wandb": "disabled"}
    return run({**usual, **plan}, request, folder)


@pytest.fixture(autouse=True)
def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.mark.slow
def test_killed_a_few_times_and_started_again_nothing_shows_also_with_texts_that_vary_by_epoch(
    request_for: MakeRequest, tokens_of: TokensOf, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(2048, size=(6, 4, 25), dtype=np.uint16)
    rows = [Row(f"{n}.wav", f"tune {n}", 0.5, codes[n], {"genre": f"style {n}", "bpm": f"{70 + n}"}) for n in range(6)]
    texts = {"tokens": str(tokens_of(rows)), "merge_text_p": 0.9, "cfg_dropout": 0.0}
    settings = {"num_epochs": 4, "save_every_steps": 2, "save_every_minutes": 1e-3, **texts}
    train(request_for("whole", **settings))
    report = killed(request_for("killed", **settings), tmp_path, kills=3, seed=1)
    assert report["kills"] >= 2
    assert all(seconds < 20 for seconds in report["terminations"])
    assert_nothing_shows(str(tmp_path / "killed"), str(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_tens_of_times_and_started_again_nothing_shows(request_for: MakeRequest, tmp_path: Path) -> None:
    settings = {"num_epochs": 16, "save_every_steps": 2, "save_every_minutes": 1e-3}
    train(request_for("whole", **settings))
    plan = {"kills": 20, "seed": 1, "life_steps": 2, "step_seconds": 0.08}
    report = killed(request_for("killed", **settings), tmp_path, **plan)
    assert report["kills"] >= 14
    assert all(seconds < 20 for seconds in report["terminations"])
    assert_nothing_shows(str(tmp_path / "killed"), str(tmp_path / "whole"))


@pytest.mark.slow
def test_killed_runs_continue_in_one_wandb_run(request_for: MakeRequest, tmp_path: Path) -> None:
    request = request_for("killed", num_epochs=4, save_every_steps=2)
    report = killed(
        request, tmp_path, kills=4, seed=3, life_steps=2, early_seconds=3.0, step_seconds=0.1, wandb="offline"
    )
    assert report["kills"] >= 2
    run_id = json.loads((tmp_path / "killed" / "config.json").read_text())["wandb_id"]
    parts = [path.name for path in (tmp_path / "killed" / "wandb").glob("offline-run-*")]
    assert len(parts) >= 2
    assert {re.sub(r".*-", "", name) for name in parts} == {run_id}

"""Read the state of a run directory."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def steps(run_dir: Path) -> list[int]:
    """Return the steps in `metrics.jsonl`."""
    metrics = run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []


def saved_step(run_dir: Path) -> int:
    """Return the step of `latest.pt`; 0 if there is no such file."""
    latest = run_dir / "latest.pt"
    return int(torch.load(latest, weights_only=True)["global_step"]) if latest.exists() else 0


def assert_saved_where_it_was(run_dir: Path) -> None:
    """Assert that `latest.pt` is of the last step, whose row it holds if the run ended before it was written."""
    latest = torch.load(run_dir / "latest.pt", weights_only=True)
    pending = latest["progress"]["pending"]
    kept = {*steps(run_dir), *([int(pending["step"])] if pending else [])}
    assert sorted(kept) == list(range(1, latest["global_step"] + 1))

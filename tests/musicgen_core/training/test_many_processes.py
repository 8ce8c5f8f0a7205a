"""A run in several processes under torchrun, over Gloo on the CPU; the same code runs over NCCL on GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from musicgen_core import storage
from musicgen_core.model.trained_model import load_trained_model
from musicgen_core.tracking import read_metrics
from musicgen_core.training.processes.launch import launch
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest


@pytest.mark.slow
def test_a_run_moves_from_two_processes_to_one_with_the_same_curve(request_for: MakeRequest) -> None:
    """With dropout, and clips that two processes can't share evenly. Two processes stop after the first epoch."""
    alone = request_for("alone", batch_size=1, gradient_accumulation_steps=2)
    two = request_for("moved", batch_size=1, gpus=2, max_steps=3)
    train(alone)

    steps: list[int] = []
    first = launch(two, 2, on_step=lambda row: steps.append(int(row["step"])))
    assert (steps, first.steps) == ([1, 2, 3], 3)
    rest = train(replace(alone, run_dir=two.run_dir))
    assert (rest.resumed_from, rest.steps) == (3, 6)

    expected, found = (read_metrics(Path(one) / "metrics.jsonl") for one in (alone.run_dir, two.run_dir))
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for name in ("train/loss", "val/loss"):
        curves = [[row[name] for row in rows if name in row] for rows in (found, expected)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.slow
def test_two_processes_share_generated_clips_with_the_same_curve(request_for: MakeRequest) -> None:
    given = {"prior_preservation": 0.5, "segment_seconds": 0.4, "num_epochs": 1, "full_models": "none"}
    alone = request_for("alone", batch_size=1, gradient_accumulation_steps=2, **given)
    two = request_for("two", batch_size=1, gpus=2, **given)
    train(alone)
    assert launch(two, 2).steps == 5
    expected, found = (read_metrics(Path(one) / "metrics.jsonl") for one in (alone.run_dir, two.run_dir))
    for name in ("train/loss", "val/loss"):
        curves = [[row[name] for row in rows if name in row] for rows in (found, expected)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("given", [{"optimizer_name": "schedulefree"}, {"ema": 0.5}], ids=str)
def test_sharded_weights_learn_as_in_one_process_and_move_there(
    request_for: MakeRequest, given: dict[str, str | float]
) -> None:
    """Two processes of which one has no clip in the last step of an epoch; they stop after the first."""
    settings = {"train": "all", "full_models": "best_and_final", "learning_rate": 1e-4, **given}
    alone = request_for("alone", batch_size=1, gradient_accumulation_steps=2, **settings)
    two = request_for("moved", batch_size=1, gpus=2, max_steps=3, **settings)
    train(replace(alone, settings=alone.settings.model_copy(update={"max_steps": 3})))
    launch(two, 2)
    final = [_final(one.run_dir) for one in (alone, two)]
    for name, tensor in final[0].items():
        torch.testing.assert_close(final[1][name], tensor, atol=2e-6, rtol=0)  # of an update of 3e-4

    train(alone)
    assert train(replace(alone, run_dir=two.run_dir)).resumed_from == 3
    expected, found = (read_metrics(Path(one.run_dir) / "metrics.jsonl") for one in (alone, two))
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    for name in ("train/loss", "val/loss", "train/grad_norm"):
        curves = [[row[name] for row in rows if name in row] for rows in (found, expected)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def _final(run_dir: str) -> dict[str, torch.Tensor]:
    return load_trained_model(storage.as_path(run_dir) / "full_models" / "final_model.pt").weights

"""Layers, ranks, averages and optimizers: a killed run resumes to the same bits, also with gradient accumulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core.errors import Cancelled
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import find_adapter, load_adapter
from musicgen_core.model.audiocraft_format import from_audiocraft, read_checkpoint
from musicgen_core.model.local_files import LM_FILE
from musicgen_core.model.lora import load_merged
from musicgen_core.model.weights import BaseModel
from musicgen_core.training.request import TrainRequest
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest
from tests.musicgen_core.training.trainers import EIGHT_BITS

OPTIONS: dict[str, dict[str, Any]] = {
    "layers": {"layers": "1"},
    "ranks": {"layers": "0-1", "ranks": "0=2,1=5", "lora_rslora": True},
    "ranks of DoRA": {"layers": "1", "ranks": "1=3", "lora_dora": True},
    "average": {"ema": 0.9},
    "prodigy": {"optimizer_name": "prodigy", "learning_rate": 1.0, "warmup_steps": 2, "schedule": "cosine"},
    "schedulefree": {"optimizer_name": "schedulefree", "learning_rate": 3e-3, "warmup_steps": 2},
    "adamw8bit": {"optimizer_name": "adamw8bit"},
    "prodigy with an average": {"optimizer_name": "prodigy", "learning_rate": 1.0, "ema": 0.9, "layers": "1"},
    "adamw8bit of DoRA": {"optimizer_name": "adamw8bit", "lora_dora": True},
    "average of some layers": {"ema": 0.999, "layers": "1", "validate_every_steps": 1},
}


def cases() -> list[Any]:
    marks = {True: EIGHT_BITS.marks, False: ()}
    return [
        pytest.param(given, id=name, marks=marks[given.get("optimizer_name") == "adamw8bit"])
        for name, given in OPTIONS.items()
    ]


@pytest.mark.parametrize("given", cases())
def test_a_killed_and_a_cancelled_run_resume_to_the_same_bits(
    request_for: MakeRequest,
    killed_after: Callable[[TrainRequest, int], None],
    left_in: Callable[[str], Any],
    same_weights: Callable[..., None],
    given: dict[str, Any],
) -> None:
    settings = {
        "batch_size": 1,
        "gradient_accumulation_steps": 2,
        "save_every_steps": 2,
        "full_models": "none",
        **given,
    }
    whole, interrupted = request_for("whole", **settings), request_for("interrupted", **settings)
    train(whole)
    killed_after(interrupted, 3)  # after the checkpoint of step 2
    done: list[Any] = []
    with pytest.raises(Cancelled):
        train(interrupted, on_step=done.append, cancelled=partial(bool, done))
    assert train(interrupted).resumed_from in (3, 4)
    expected, found = left_in(whole.run_dir), left_in(interrupted.run_dir)
    assert found.files == expected.files
    assert found.untimed_rows == expected.untimed_rows
    for name in sorted(name for name in expected.files if name.startswith("lora_weights/")):
        stem = name.removeprefix("lora_weights/").removesuffix(".pt")
        same_weights(found.adapter(stem), expected.adapter(stem))


@pytest.mark.parametrize("kind", ["peft", "audiocraft"])
def test_a_trained_adapter_of_some_layers_exports_and_merges(
    request_for: MakeRequest, debug_model: BaseModel, kind: Any
) -> None:
    request = request_for(layers="1", ranks="1=3", max_steps=2)
    train(request)
    best = load_adapter(find_adapter(request.run_dir))
    assert {name.split(".")[5] for name in best.lora} == {"1"}
    exported = export(request.run_dir, f"{request.run_dir}-{kind}", kind)
    expected = load_merged(debug_model, best, "cpu", torch.float32).state_dict()
    if kind == "peft":
        adapter = load_adapter(find_adapter(exported.directory))
        found = load_merged(debug_model, adapter, "cpu", torch.float32).state_dict()
    else:
        found = from_audiocraft(read_checkpoint(Path(str(exported.directory)) / LM_FILE)["best_state"])
    for name in found:
        torch.testing.assert_close(found[name].float(), expected[name], rtol=1e-6, atol=1e-7)

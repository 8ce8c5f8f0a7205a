"""A run that trained all weights stands where an adapter does: in music, mixes, evaluations and exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musicgen_core import storage
from musicgen_core.data.dataset import Clips
from musicgen_core.errors import AdapterError
from musicgen_core.evaluation.held_out import clip_losses_of_both
from musicgen_core.exporting.export import export
from musicgen_core.model.adapter_mix import load_mix
from musicgen_core.model.adapters import find_adapter
from musicgen_core.model.lora import AdaptedModel
from musicgen_core.model.trained_model import TrainedModel, load_trained_model
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.tracking import read_metrics
from musicgen_core.training.train import train
from tests.fixture_types import MakeRequest
from tests.musicgen_core.training.conftest import tiny_request


@pytest.fixture(scope="module")
def run_dir(debug_model: BaseModel, tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of one epoch, whose best model is its final one. Not to be written to."""
    folder = str(tmp_path_factory.mktemp("full") / "run")
    train(tiny_request(debug_model, tokens=str(tokens), run_dir=folder, train="all", num_epochs=1))
    return folder


def best_of(run_dir: str) -> TrainedModel:
    return load_trained_model(storage.as_path(run_dir) / "full_models" / "best_model.pt")


def test_strengths_lead_from_the_base_model_to_the_trained_one(debug_model: BaseModel, run_dir: str) -> None:
    [loaded] = load_mix([WeightedAdapter(run_dir)])
    assert loaded.path.name == "best_model.pt"
    lm, base, trained = load_lm(debug_model), debug_model.lm_state(), best_of(run_dir).weights
    adapted = AdaptedModel(lm, debug_model.lm_state, [loaded.adapter])
    for strength in (1.0, 0.5, 0.0):
        adapted.set_strengths([strength])
        for name, weight in lm.state_dict().items():
            expected = base[name] + strength * (trained[name] - base[name])
            torch.testing.assert_close(weight, expected, atol=1e-7, rtol=1e-6)
            assert strength == 0.5 or torch.equal(weight, trained[name] if strength else base[name])


def test_an_evaluation_measures_both_models(debug_model: BaseModel, run_dir: str, clips: Clips) -> None:
    rows = read_metrics(Path(run_dir) / "metrics.jsonl")
    losses = clip_losses_of_both(debug_model, best_of(run_dir), clips, range(len(clips)), 1500, torch.device("cpu"))
    base, trained = (one.mean(axis=1) for one in losses)
    assert any(loss == pytest.approx(rows[-1]["val/loss"], rel=1e-5) for loss in trained)
    assert not any(loss == pytest.approx(rows[-1]["val/loss"], rel=1e-5) for loss in base)


@pytest.mark.parametrize("kind", ["audiocraft", "huggingface"])
def test_exports_are_the_trained_model(run_dir: str, debug_model: BaseModel, tmp_path: Path, kind: str) -> None:
    out = tmp_path / kind
    export(run_dir, out, kind, model=str(debug_model.directory))  # type: ignore[arg-type]
    exported = find_model(str(out)).lm_state()
    assert all(torch.equal(exported[name], weight) for name, weight in best_of(run_dir).weights.items())
    assert "fine-tuned in all of its weights" in (out / "README.md").read_text()


def test_peft_and_an_adapter_that_starts_from_it_are_refused(
    run_dir: str, request_for: MakeRequest, tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match="there is no adapter: all weights") as refused:
        export(run_dir, tmp_path / "peft", "peft")
    assert "--format audiocraft" in refused.value.next_step
    with pytest.raises(AdapterError, match="no adapter can start from it"):
        train(request_for(init_adapter=run_dir))
    assert find_adapter(run_dir).name == "best_model.pt"

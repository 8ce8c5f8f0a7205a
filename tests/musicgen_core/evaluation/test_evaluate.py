"""Losses of a trained adapter and of its base model, on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import load_clips
from musicgen_core.errors import AdapterError
from musicgen_core.evaluation.evaluate import evaluate, find_subject
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings, Evaluation
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import Adapter, AdapterConfig, save_adapter
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.lora import adapter_state, add_lora
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.batches import BatchSize
from musicgen_core.training.loop import Trainer
from tests.fixture_types import Evaluate

pytestmark = pytest.mark.usefixtures("blank_plots")


def test_the_adapters_loss_equals_its_validation_loss(trained: Path, evaluation: Evaluation) -> None:
    rows = tracking.read_metrics(trained / "metrics.jsonl")
    [best] = [row for row in rows if row.get("epoch") == evaluation.adapter.epoch and "val/loss" in row]
    assert evaluation.loss.adapter_loss == pytest.approx(best["val/loss"], abs=1e-6)
    for k, one in enumerate(evaluation.codebooks):
        assert one.adapter_loss == pytest.approx(best[f"val/loss_codebook_{k}"], abs=1e-6)
        assert one.adapter_perplexity == pytest.approx(best[f"val/perplexity_codebook_{k}"], rel=1e-6)


def test_the_base_models_loss_equals_that_of_an_untrained_adapter(
    debug_model: BaseModel, tokens: Path, text_encoder: Any, evaluation: Evaluation
) -> None:
    clips = load_clips(storage.as_path(tokens), codec_identity(debug_model))
    settings = TrainSettings(validation_fraction=0.3, segment_seconds=1.2)
    trainer = Trainer(load_lm(debug_model), text_encoder, clips, settings, BatchSize(4, 1), 0.0)
    metrics = trainer.validate()
    assert evaluation.loss.base_loss == pytest.approx(metrics["val/loss"], abs=1e-6)
    assert evaluation.loss.base_perplexity == pytest.approx(metrics["val/perplexity"], rel=1e-5)
    assert evaluation.clips == evaluation.validation_clips == len(trainer.batches.validation_clips)
    frames = clips.frames[trainer.batches.validation_clips]
    assert evaluation.codes == 4 * int(np.minimum(frames, 60).sum()) < 4 * int(frames.sum())


@pytest.mark.parametrize("kind", ["plain", "dora", "few targets"])
def test_an_adapter_that_does_nothing_makes_no_difference(
    kind: str, debug_model: BaseModel, run: Evaluate, tmp_path: Path
) -> None:
    settings = {
        "plain": AdapterConfig(2, 4),
        "dora": AdapterConfig(2, 4, dora=True),
        "few targets": AdapterConfig(2, 4, targets=("encoder_attn.q_proj",)),
    }[kind]
    lora = adapter_state(add_lora(load_lm(debug_model), settings))
    path = UPath(tmp_path / "idle_lora.pt")
    save_adapter(Adapter(lora, settings.plain(), 0, 0, 1.0, debug_model.identity), path)
    found = run(path)
    assert found.verdict == "undecided"
    assert found.loss.difference == pytest.approx(0, abs=1e-6)


def test_clips_at_most_are_the_same_ones_whatever_is_evaluated(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    few = run(trained, tmp_path / "few", max_clips=4)
    assert (few.clips, few.loss.standard_error is not None) == (4, True)
    assert few.validation_clips > 4
    assert few.remarks == [
        f"Of {few.validation_clips} validation clips 4 were evaluated, as many as asked for, the same each time."
    ]
    again = run(trained / "lora_weights" / "lora_epoch_1.pt", tmp_path / "again", max_clips=4)
    assert again.loss.base_loss == few.loss.base_loss  # bit for bit: the same clips in the same batches
    assert again.loss.adapter_loss != few.loss.adapter_loss


def test_progress_covers_all_clips_of_both_models(
    debug_model: BaseModel, tokens: Path, trained: Path, tmp_path: Path
) -> None:
    heard: list[tuple[int, int, str]] = []
    settings = EvaluateSettings(samples=0)
    request = EvaluateRequest(str(tokens), str(trained), str(debug_model.directory), str(tmp_path), "cpu", settings)
    found = evaluate(request, lambda *progress: heard.append(progress))
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    assert heard[-1] == (2 * found.clips, 2 * found.clips, "the adapter's losses")


def test_without_a_model_the_adapters_own_is_evaluated(tokens: Path, trained: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(max_clips=2, prompts=["jazz"], duration=0.5, samples=0)
    found = evaluate(EvaluateRequest(str(tokens), str(trained), output=str(tmp_path), device="cpu", settings=settings))
    assert found.base_model == json.loads((trained / "config.json").read_text())["base_model"]


def test_a_peft_directory_is_evaluated_like_its_source_adapter(
    trained: Path, run: Evaluate, evaluation: Evaluation, tmp_path: Path
) -> None:
    export(str(trained), str(tmp_path / "jazz-1.2"), "peft")
    found = run(tmp_path / "jazz-1.2", validation_fraction=0.3, segment_seconds=1.2)
    assert found.loss == evaluation.loss and found.codebooks == evaluation.codebooks
    assert found.report == str(tmp_path / "jazz-1.2_evaluation" / "report.html")


def test_a_mix_is_evaluated_as_the_sum_of_its_adapters(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    mix = f"{trained}:0.6, {trained}:0.4"
    found, whole = (run(Path(given), tmp_path / str(k), max_clips=4) for k, given in enumerate((mix, trained)))
    assert found.adapter.path == mix and found.adapter.sha256 != whole.adapter.sha256
    assert found.loss.adapter_loss == pytest.approx(whole.loss.adapter_loss, abs=1e-5)
    assert found.loss.base_loss == whole.loss.base_loss != whole.loss.adapter_loss
    assert found.is_held_out  # both are of one run
    weaker, stronger = (find_subject(f"{trained}:{strength}") for strength in (0.5, 0.7))
    assert weaker.output != stronger.output and weaker.output.parent == stronger.output.parent
    whole_strength, plain = find_subject(f"{trained}:1"), find_subject(str(trained))
    assert (whole_strength.path, whole_strength.output) == (plain.path, plain.output)
    with pytest.raises(AdapterError, match="no adapter has an effect"):
        run(Path(f"{trained}:0"), tmp_path / "none")

"""Evaluations of a trained adapter on the CPU: the numbers, their location, and errors."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import load_clips
from musicgen_core.data.shards import Row, ShardReport, ShardWriter, publish_shard
from musicgen_core.errors import AdapterError, ConfigError, ModelError, TokensError
from musicgen_core.evaluation import evaluate as module
from musicgen_core.evaluation.comparison import compare, confidence_interval, verdict_of
from musicgen_core.evaluation.evaluate import evaluate, stored_evaluation
from musicgen_core.evaluation.request import EvaluateRequest, EvaluateSettings, Evaluation
from musicgen_core.exporting.export import export
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.lora import Adapter, AdapterConfig, adapter_state, add_lora, load_adapter, save_adapter
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.batch_size import BatchSize
from musicgen_core.training.loop import Trainer
from tests.stand_in_hub import StandInHub

pytestmark = pytest.mark.usefixtures("blank_plots")

CLIPS = 40  # of the tokens
Evaluate = Callable[..., Evaluation]


# Losses


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


def test_verdicts_distinguish_better_from_worse_adapters(
    debug_model: BaseModel, trained: Path, evaluation: Evaluation, run: Evaluate, tmp_path: Path
) -> None:
    assert evaluation.verdict == "better" and evaluation.interval is not None
    low, high = evaluation.interval
    assert low < evaluation.loss.difference < high < -0.1
    assert evaluation.sentence().startswith("The adapter is better than the base model: loss ")

    adapter = load_adapter(UPath(trained / "lora_weights" / "best_lora.pt"))
    harmful = {name: -value if "lora_B" in name else value for name, value in adapter.lora.items()}
    save_adapter(Adapter(**{**vars(adapter), "lora": harmful}), UPath(tmp_path / "harmful_lora.pt"))
    worse = run(tmp_path / "harmful_lora.pt", validation_fraction=0.3)
    assert worse.verdict == "worse" and worse.loss.difference > 0.1
    assert worse.loss.base_loss == pytest.approx(
        run(trained, tmp_path / "again", segment_seconds=30).loss.base_loss, abs=1e-9
    )


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
    request = EvaluateRequest(str(tokens), str(trained), str(debug_model.directory), str(tmp_path), "cpu")
    found = evaluate(request, lambda *progress: heard.append(progress))
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    assert heard[-1] == (2 * found.clips, 2 * found.clips, "the adapter's losses")


def test_without_a_model_the_adapters_own_is_evaluated(tokens: Path, trained: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(max_clips=2, prompts=["jazz"], duration=0.5)
    found = evaluate(EvaluateRequest(str(tokens), str(trained), output=str(tmp_path), device="cpu", settings=settings))
    assert found.base_model == json.loads((trained / "config.json").read_text())["base_model"]


# Interpretation


def test_error_and_interval_are_those_of_paired_differences() -> None:
    base, change = np.array([5.0, 1.0, 3.0, 7.0]), np.array([-0.1, -0.3, -0.2, -0.2])
    found = compare(base, base + change)
    assert found.difference == pytest.approx(-0.2)
    assert found.standard_error == pytest.approx(math.sqrt(0.02 / 3 / 4))
    assert found.base_perplexity == pytest.approx(math.exp(4))
    interval = confidence_interval(base, base + change)
    half = 3.1824463052837078 * math.sqrt(0.02 / 3 / 4)  # Student's t with 3 degrees of freedom, at 97.5 %
    assert interval == pytest.approx((-0.2 - half, -0.2 + half), abs=1e-9)
    assert (verdict_of(interval), verdict_of((0.1, 0.2)), verdict_of((-0.1, 0.2))) == ("better", "worse", "undecided")


@pytest.mark.filterwarnings("error")
def test_the_interval_of_equal_differences_has_no_width() -> None:
    assert confidence_interval(np.array([5.0, 1.0]), np.array([4.5, 0.5])) == (-0.5, -0.5)


def test_a_single_clip_decides_nothing(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    found = run(trained, tmp_path, max_clips=1)
    assert (found.verdict, found.interval, found.loss.standard_error) == ("undecided", None, None)
    assert found.sentence().startswith("One clip can't tell")


def test_the_sentence_has_a_caveat_for_few_clips(
    trained: Path, evaluation: Evaluation, run: Evaluate, tmp_path: Path
) -> None:
    assert evaluation.clips >= 8 and "prove little" not in evaluation.sentence()
    found = run(trained, tmp_path, max_clips=3)
    assert "on these clips, but so few prove little: loss " in found.sentence()
    pages = [Path(one.report).read_text(encoding="utf-8") for one in (evaluation, found)]
    assert ["change over clips" in page for page in pages] == [True, False]  # a distribution of three says nothing


def test_the_confidence_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        low, high = confidence_interval(np.zeros(6), rng.normal(0.5, 1, size=6)) or (0, 0)
        held += low <= 0.5 <= high
    assert 925 <= held <= 975


# Locations of reports and adapters


def test_the_run_directory_holds_the_best_adapters_evaluation(
    copied: Path, evaluation: Evaluation, run: Evaluate
) -> None:
    assert evaluation.report == str(copied / "evaluation" / "report.html")
    assert {path.name for path in (copied / "evaluation").iterdir()} == {"evaluation.json", "report.html"}
    assert evaluation.segment_seconds == 1.2 and evaluation.validation_fraction == 0.3  # as trained
    other = run(copied / "lora_weights" / "lora_epoch_1.pt")
    assert other.report == str(copied / "evaluation" / "lora_epoch_1" / "report.html")
    assert other.adapter.epoch == 1 and stored_evaluation(copied) == evaluation


def test_an_adapter_without_a_run_is_evaluated_with_a_warning(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    shutil.copy(trained / "lora_weights" / "best_lora.pt", tmp_path / "sent_lora.pt")
    found = run(tmp_path / "sent_lora.pt")
    assert found.report == str(tmp_path / "sent_lora_evaluation" / "report.html")
    assert found.validation_fraction == 0.05 and found.segment_seconds == 30
    [remark] = found.remarks
    assert "lies in no run directory" in remark and "any adapter looks better" in remark
    assert found.verdict == "undecided" and found.loss.difference < 0
    assert (
        "that the adapter may have learned from" in found.sentence()
        and "adapter is better than" not in found.sentence()
    )


def test_a_peft_directory_is_evaluated_like_its_source_adapter(
    trained: Path, run: Evaluate, evaluation: Evaluation, tmp_path: Path
) -> None:
    export(str(trained), str(tmp_path / "jazz-1.2"), "peft")
    found = run(tmp_path / "jazz-1.2", validation_fraction=0.3, segment_seconds=1.2)
    assert found.loss == evaluation.loss and found.codebooks == evaluation.codebooks
    assert found.report == str(tmp_path / "jazz-1.2_evaluation" / "report.html")


def test_clips_that_the_adapter_has_learned_from_are_left_out(
    trained: Path, run: Evaluate, evaluation: Evaluation, tmp_path: Path
) -> None:
    found = run(trained, tmp_path, validation_fraction=0.9)
    assert (found.clips, found.loss, found.verdict) == (evaluation.clips, evaluation.loss, "better")
    assert found.is_held_out and "clips were left out: the adapter has learned from them" in found.remarks[0]
    assert found.validation_fraction == found.clips / CLIPS
    fewer = run(trained, tmp_path, validation_fraction=0.2)
    assert fewer.clips < found.clips and fewer.remarks == []


@pytest.mark.parametrize("there", [True, False])
def test_clips_trained_on_by_an_earlier_run_are_left_out(
    there: bool, trained: Path, run: Evaluate, evaluation: Evaluation, tmp_path: Path
) -> None:
    """The run held out more than the run that it started from."""
    first, second = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("first", "second"))
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"validation_fraction": 0.1}))
    init = first / "lora_weights" / "best_lora.pt"
    (second / "config.json").write_text(json.dumps(config | {"init_adapter": str(init)}))
    if not there:
        shutil.rmtree(first)
    found = run(second, tmp_path / "out")
    assert found.is_held_out == there
    if there:
        assert found.clips < evaluation.clips and "learned from them" in found.remarks[0]
    else:
        assert found.clips == evaluation.clips and found.verdict == "undecided"
        assert f"began from {init}" in found.remarks[0] and "may have learned from" in found.sentence()


def test_an_object_store_holds_all_of_it(trained: Path, run: Evaluate, bucket: UPath) -> None:
    for file in sorted(trained.rglob("*")):
        if file.is_file():
            storage.upload(file, bucket.joinpath("jazz", *file.relative_to(trained).parts))
    found = run(bucket / "jazz")
    assert found.report == f"{bucket}/jazz/evaluation/report.html"
    assert stored_evaluation(bucket / "jazz") == found
    page = (bucket / "jazz" / "evaluation" / "report.html").read_text()
    assert page.count("<audio ") == 4 and page.count("<img ") == 3


def test_a_stored_evaluation_must_be_complete_and_of_the_best(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "jazz"))
    assert stored_evaluation(root) is None
    found = run(root, max_clips=3)
    assert stored_evaluation(root) == found
    report = root / "evaluation" / "report.html"
    report.rename(tmp_path / "away")
    assert stored_evaluation(root) is None
    (tmp_path / "away").rename(report)
    shutil.copy(root / "lora_weights" / "lora_epoch_1.pt", root / "lora_weights" / "best_lora.pt")
    assert stored_evaluation(root) is None
    (root / "evaluation" / "evaluation.json").write_text('{"adapter": 1}')
    assert stored_evaluation(root) is None


def test_an_interrupted_evaluation_leaves_no_older_json(
    trained: Path, run: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(trained, tmp_path, max_clips=2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_report", full)
    with pytest.raises(OSError, match="No space"):
        run(trained, tmp_path, max_clips=3)
    assert not (tmp_path / "evaluation.json").exists()


# Errors


@pytest.mark.parametrize("name", ["evaluation.json", "report.html"])
def test_an_output_with_files_of_others_is_refused(name: str, trained: Path, run: Evaluate, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} is not of this program"):
        run(trained, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["evaluation.json", "report.html"])
def test_a_pipe_at_a_reports_path_is_refused_without_blocking(
    name: str, trained: Path, run: Evaluate, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name} is not of this program"):
        run(trained, tmp_path)


def test_the_evaluation_of_another_adapter_is_not_written_over(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    found = run(trained, tmp_path, max_clips=2)
    with pytest.raises(ConfigError, match=r"evaluation.json is of another adapter, .*best_lora.pt"):
        run(trained / "lora_weights" / "lora_epoch_1.pt", tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["adapter"]["sha256"] == found.adapter.sha256


@pytest.fixture
def request_for(debug_model: BaseModel, tokens: Path, trained: Path, tmp_path: Path) -> Callable[..., EvaluateRequest]:
    """Return a factory of valid requests with the given fields and settings."""

    def make(**given: Any) -> EvaluateRequest:
        fields = {name: given.pop(name) for name in list(given) if name in EvaluateRequest.__dataclass_fields__}
        right = {"tokens": str(tokens), "adapter": str(trained), "model": str(debug_model.directory), "device": "cpu"}
        return EvaluateRequest(
            **{**right, "output": str(tmp_path / "out"), "settings": EvaluateSettings(**given), **fields}
        )

    return make


def test_adapters_of_one_name_on_the_hub_keep_their_evaluations(
    hub: StandInHub,
    request_for: Callable[..., EvaluateRequest],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for user, name in (("one", "best_lora.pt"), ("two", "lora_epoch_1.pt")):
        (tmp_path / user).mkdir()
        shutil.copy(trained / "lora_weights" / name, tmp_path / user / "best_lora.pt")
        hub.add(f"{user}/jazz", tmp_path / user)
    for _ in range(2):
        evaluate(request_for(adapter="one/jazz", output=None, max_clips=2))
    with pytest.raises(ConfigError, match=r"jazz_evaluation/evaluation.json is of another adapter, one/jazz@"):
        evaluate(request_for(adapter="two/jazz", output=None, max_clips=2))


def write_shard(folder: Path, codec: str, clips: int) -> Path:
    folder.mkdir()
    parquet = folder.with_suffix(".parquet")
    with ShardWriter(parquet, codec) as writer:
        for i in range(clips):
            writer.add(Row(f"{i}.wav", None, 1.0, np.zeros((4, 50), dtype=np.uint16)))
    publish_shard(parquet, ShardReport("a.zip", 1, "f", "c", clips, 1.0), UPath(folder))
    return folder


def test_tokens_that_can_not_be_evaluated_on_are_named(
    debug_model: BaseModel, request_for: Callable[..., EvaluateRequest], tmp_path: Path, clap_weights: Path
) -> None:
    codec = codec_identity(debug_model)
    for tokens, kind, words in (
        (tmp_path / "none", TokensError, "there are no tokenized clips in .*none"),
        (write_shard(tmp_path / "foreign", "sha256:other", 3), TokensError, "tokenized with another model"),
        (write_shard(tmp_path / "single", codec, 1), TokensError, "a single clip .* none is held out"),
    ):
        with pytest.raises(kind, match=words):
            evaluate(request_for(tokens=str(tokens)))
    silent = request_for(tokens=str(write_shard(tmp_path / "silent", codec, 5)), clap_weights=str(clap_weights))
    with pytest.raises(ConfigError, match=r"0 of the . clips .* have a description.*Leave out --clap-weights"):
        evaluate(silent)
    with pytest.raises(ModelError, match="CLAP weights"):
        evaluate(request_for(clap_weights=str(tmp_path)))
    assert not (tmp_path / "out").exists()


def test_adapters_that_can_not_be_evaluated_are_named(
    trained: Path, request_for: Callable[..., EvaluateRequest], tmp_path: Path
) -> None:
    with pytest.raises(AdapterError, match=r"there is no adapter at .*nowhere"):
        evaluate(replace(request_for(adapter=str(tmp_path / "nowhere")), model=str(tmp_path / "no-model")))
    own = load_adapter(UPath(trained / "lora_weights" / "best_lora.pt"))
    foreign = UPath(tmp_path / "foreign_lora.pt")
    save_adapter(Adapter(**{**vars(own), "base_model": "facebook/musicgen-small@sha256:0123456789abcdef"}), foreign)
    with pytest.raises(AdapterError, match=r"was trained on facebook/musicgen-small.*Give --model"):
        evaluate(request_for(adapter=str(foreign)))
    for name, factor, message in [("huge", 1e37, "aren't finite numbers"), ("infinite", math.inf, "NaN or infinite")]:
        broken = {key: value * factor for key, value in own.lora.items()}
        save_adapter(Adapter(**{**vars(own), "lora": broken}), UPath(tmp_path / f"{name}_lora.pt"))
        with pytest.raises(AdapterError, match=message):
            evaluate(request_for(adapter=str(tmp_path / f"{name}_lora.pt")))


def test_a_run_that_held_nothing_out_needs_other_tokens(
    trained: Path, request_for: Callable[..., EvaluateRequest], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "jazz"))
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"validation_fraction": 0}))
    with pytest.raises(ConfigError, match=r"held no clips out .*Give --validation-fraction with tokens"):
        evaluate(request_for(adapter=str(root)))
    with pytest.raises(ConfigError, match=r"has learned from all of the .* held out 0 of the clips"):
        evaluate(request_for(adapter=str(root), validation_fraction=0.2))

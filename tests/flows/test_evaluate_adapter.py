"""Evaluation from the command line, and at the end of training runs."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import State
from prefect.variables import Variable

from deployments.cli import main
from flows.evaluate_adapter import evaluate_adapter
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.data.shards import Row, ShardWriter
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation import evaluate as core
from tests.killing import Killed

pytestmark = pytest.mark.usefixtures("blank_plots")

DEBUG: dict[str, Any] = {"model": "debug", "device": "cpu"}
QUICK: dict[str, Any] = {
    **DEBUG,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "segment_seconds": 1.0,
    "validation_fraction": 0.3,
    "learning_rate": 3e-3,
    "num_epochs": 2,
    "full_models": "none",
}


@pytest.fixture(scope="module")
def tokens(prefect_server: None, tmp_path_factory: pytest.TempPathFactory, demo_archives: Path) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    tokenize_archives(archives=str(demo_archives), tokens=str(folder), **DEBUG)
    return folder


@pytest.fixture(scope="module")
def trained(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State[Any]]:
    """Return an evaluated training run: its directory, which is read-only, and its state."""
    run_dir = tmp_path_factory.mktemp("runs") / "jazz"
    return run_dir, train(tokens, run_dir)


def train(tokens: Path, run_dir: Path, **parameters: Any) -> State[Any]:
    return train_lora(tokens=str(tokens), run_dir=str(run_dir), return_state=True, **(QUICK | parameters))


def summary_of(state: State[Any]) -> str:
    of_run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=of_run, key=ArtifactFilterKey(any_=["summary"]))
        )
    assert len(found) == 1
    return str(found[0].data)


def test_a_training_ends_with_its_evaluation(trained: tuple[Path, State[Any]]) -> None:
    run_dir, state = trained
    found = state.result().evaluation
    assert found.report == str(run_dir / "evaluation" / "report.html") and Path(found.report).exists()
    stored = json.loads((run_dir / "evaluation" / "evaluation.json").read_text())
    assert (
        stored["loss"]["adapter_loss"] == found.loss.adapter_loss == pytest.approx(state.result().best_loss, abs=1e-6)
    )
    page = summary_of(state)
    assert "## Trained" in page and "## Is it better?" in page
    assert f"| all codebooks | {found.loss.base_loss:.4f} | {found.loss.adapter_loss:.4f} | " in page
    assert f"`{found.report}`" in page


def test_only_a_longer_training_run_is_evaluated_again(
    tokens: Path, trained: tuple[Path, State[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Path(shutil.copytree(trained[0], tmp_path / "jazz"))
    evaluated: list[str] = []
    own = core.evaluate
    monkeypatch.setattr(core, "evaluate", lambda *given: evaluated.append(given[0].adapter) or own(*given))
    again = train(tokens, run_dir).result()
    assert (again.ending, evaluated) == ("complete before", [])
    assert again.evaluation == trained[1].result().evaluation

    longer = train(tokens, run_dir, num_epochs=3).result()
    assert evaluated == [str(run_dir)]
    assert longer.evaluation.loss.adapter_loss == pytest.approx(longer.best_loss, abs=1e-6)

    shutil.rmtree(run_dir / "evaluation")  # as if it had been killed before this
    assert train(tokens, run_dir, num_epochs=3).result().evaluation == longer.evaluation
    assert len(evaluated) == 2


def test_the_trained_model_is_freed_before_the_evaluation(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musicgen_core.model.decoder import MusicgenLM

    def models() -> list[MusicgenLM]:
        return [one for one in gc.get_objects() if isinstance(one, MusicgenLM)]

    of_other_tests = models()  # kept alive, so that no model of this test gets the identity of one of them
    alive: list[int] = []
    own = core.clip_losses_of_both

    def counted(*given: Any, **named: Any) -> Any:
        alive.append(sum(all(one is not other for other in of_other_tests) for one in models()))
        return own(*given, **named)

    monkeypatch.setattr(core, "clip_losses_of_both", counted)
    assert train(tokens, tmp_path / "jazz", max_steps=2).result().warnings == ()
    assert alive == [0]


def test_a_failed_evaluation_is_a_warning_of_a_completed_run(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("the GPU fell off the bus")

    monkeypatch.setattr(core, "evaluate", broken)
    state = train(tokens, tmp_path / "jazz", max_steps=1)
    result = state.result()
    assert state.is_completed() and result.evaluation is None
    assert result.warnings == ("the adapter could not be compared with the base model: the GPU fell off the bus",)
    assert result.warnings[0] in summary_of(state) and result.warnings[0] in caplog.text
    assert not (tmp_path / "jazz" / "evaluation").exists()


def test_a_run_ended_during_evaluation_is_not_shown_as_complete(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(*_: Any) -> None:
        try:
            raise Killed
        except Killed:
            raise RuntimeError("from compiled code")  # noqa: B904  which is how compiled code hides it

    monkeypatch.setattr(core, "evaluate", ended)
    with pytest.raises(Killed):
        train(tokens, tmp_path / "jazz", max_steps=1)


def test_without_evaluate_there_is_none(tokens: Path, tmp_path: Path) -> None:
    result = train(tokens, tmp_path / "jazz", max_steps=1, evaluate=False).result()
    assert result.evaluation is None and result.warnings == ()
    assert not (tmp_path / "jazz" / "evaluation").exists()


def test_without_held_out_clips_the_run_says_why_none_is_evaluated(tokens: Path, tmp_path: Path) -> None:
    result = train(tokens, tmp_path / "jazz", max_steps=1, validation_fraction=0).result()
    assert "held no clips out" in result.warnings[0]


def test_the_command_line_evaluates_any_adapter(
    tokens: Path, trained: tuple[Path, State[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = str(trained[0] / "lora_weights" / "lora_epoch_1.pt"), tmp_path / "report"
    prompts = ["--prompt", "calm strings", "--duration", "0.4"]
    options = ["--adapter", adapter, "--output", str(out), "--model", "debug", "--device", "cpu", *prompts]
    assert main(["evaluate", str(tokens), *options]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    found = json.loads((out / "evaluation.json").read_text())
    assert found["adapter"]["epoch"] == 1 and found["segment_seconds"] == 1.0
    assert f"{found['loss']['base_perplexity']:,.2f} → {found['loss']['adapter_perplexity']:,.2f}" in printed
    page = (out / "report.html").read_text()
    assert "calm strings" in page and page.count("<audio ") == 2


def test_mistakes_are_reported_in_one_line(
    tokens: Path, trained: tuple[Path, State[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error_of(*arguments: str) -> str:
        assert main(["evaluate", *arguments, "--model", "debug", "--device", "cpu"]) == 1
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line

    run_dir = str(trained[0])
    assert "there are no tokenized clips" in error_of(str(tmp_path), "--adapter", run_dir)
    assert "there is no adapter at" in error_of(str(tokens), "--adapter", str(tmp_path))
    assert "CLAP weights" in error_of(str(tokens), "--adapter", run_dir, "--clap-weights", str(tmp_path))


def test_tokens_of_another_codec_are_refused_before_the_adapter(
    trained: tuple[Path, State[Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = tmp_path / "other.parquet"
    with ShardWriter(shard, "sha256:other", model="small") as writer:
        writer.add(Row("a.wav", None, 1.0, np.zeros((4, 50), dtype=np.uint16)))
    for location in (trained[0], trained[0] / "lora_weights" / "lora_epoch_1.pt"):
        assert main(["evaluate", str(tmp_path), "--adapter", str(location)]) == 1
        printed = capsys.readouterr()
        assert "was tokenized with the model small, whose codec is not that of debug" in printed.err
        assert "Give tokens of debug, the adapter's base model" in printed.err and "adapter …" not in printed.out
        state: State[Any] = evaluate_adapter(tokens=str(tmp_path), adapter=str(location), return_state=True)
        assert "whose codec is not that of debug" in str(state.message)


def test_a_deployment_evaluates_the_last_completed_training_run(
    tokens: Path, trained: tuple[Path, State[Any]], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    Variable.set("musicgen_tokens", str(tokens), overwrite=True)
    Variable.set("musicgen_runs", str(runs), overwrite=True)
    none: State[Any] = evaluate_adapter(**DEBUG, return_state=True)
    with pytest.raises(ConfigError, match="no completed training of debug in"):
        none.result()
    shutil.copytree(trained[0], runs / "jazz", ignore=shutil.ignore_patterns("evaluation"))
    state: State[Any] = evaluate_adapter(**DEBUG, return_state=True)
    assert state.result().report == str(runs / "jazz" / "evaluation" / "report.html")
    page = summary_of(state)
    assert "## Is it better?" in page and "## Trained" not in page

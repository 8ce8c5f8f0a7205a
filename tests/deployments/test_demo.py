"""The output of `musicgen-flows demo`, and the style that it teaches the model."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import pytest

from deployments import console
from deployments import demo as demo_command
from deployments.cli import main
from flows.tokenize_archives import TokenizeResult
from musicgen_core.data.shards import Rejected, ShardReport
from musicgen_core.errors import MusicgenError
from musicgen_core.generation.request import Rendered
from musicgen_core.tracking import Wandb
from musicgen_core.training.request import TrainResult

FOLDER = f"/home/{'somebody/' * 12}demo"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the stream that receives the output of a terminal of 80 columns."""
    stream = io.StringIO()
    monkeypatch.setattr(console.output, "_file", stream)
    monkeypatch.setattr(console.output, "_width", 80)
    return stream


def test_the_demo_prints_each_path_and_command_on_its_own_line(
    printed: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = [Rejected("audio/broken.wav", "not decodable")]
    tokenized = TokenizeResult("/tokens", [ShardReport("a.zip", 1, "f", "c", 96, 768.0, rejected)], {}, [])
    trained = TrainResult(FOLDER, 110, 5, 2.0, 5, 2.2, 1.9, 44, None)
    rendered = [Rendered(f"{FOLDER}/music/generated_000.wav", "theremin", 0, 0, 8.0, True)]
    monkeypatch.setattr(demo_command, "_run", lambda *places: (tokenized, trained, rendered))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert main(["demo"]) == 0
    *_, page, own, estimate, _, up = printed.getvalue().splitlines()
    assert page == f"{FOLDER}/music/index.html"
    assert own.startswith("Next: Take your own music")
    assert (estimate, up) == ("uv run musicgen-flows estimate archives/", "uv run musicgen-flows up")


def test_the_demo_says_once_that_wandb_stays_offline(
    printed: io.StringIO, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run(*places: str) -> None:
        console.show_core_messages()
        for part in ("tokens", "run"):
            Wandb(tmp_path / part, "id", "name", "train", {}).finish()
        raise MusicgenError("over", "")

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(demo_command, "_run", run)
    monkeypatch.setattr(Wandb, "_work", lambda self: None)
    assert main(["demo"]) == 1
    assert printed.getvalue().splitlines() == ["loading Prefect …", "WandB stays offline: the demo uploads nothing."]


@pytest.mark.slow
def test_the_demo_resumes_and_teaches_a_new_style(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[tuple[TokenizeResult, TrainResult, list[Rendered]]] = []
    run = demo_command._run
    monkeypatch.setattr(demo_command, "_run", lambda *places: results.append(run(*places)) or results[0])
    assert main(["demo", "--workdir", str(tmp_path)]) == 0
    [(tokenized, trained, rendered)] = results
    assert [entry.clip for report in tokenized.reports for entry in report.rejected] == ["audio/broken.wav"]
    assert 0 < trained.resumed_from <= demo_command.CUT_OFF_AT_STEP < trained.steps
    assert trained.evaluation is not None and trained.evaluation.verdict == "better"
    assert Path(trained.evaluation.report).is_file() and Path(rendered[0].wav).with_name("index.html").is_file()
    heard = {(piece.prompt, piece.with_adapter) for piece in rendered}
    assert heard == set(itertools.product(demo_command.PROMPTS, (False, True)))

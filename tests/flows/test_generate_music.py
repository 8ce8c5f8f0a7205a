"""The choice of adapter and model: given, found by the deployment, or the base model alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from prefect.variables import Variable

from flows.generate_music import generate_music
from musicgen_core.config import DEFAULT_MODEL
from musicgen_core.errors import ConfigError
from musicgen_core.generation import render
from musicgen_core.generation.request import Rendered, RenderRequest
from musicgen_core.model.weighted_adapters import WeightedAdapter

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[RenderRequest]:
    """Return the list that receives requests to the core, which renders nothing."""
    asked: list[RenderRequest] = []

    def rendered(request: RenderRequest, *_: Any) -> list[Rendered]:
        asked.append(request)
        raise ConfigError("nothing is rendered here", "Look at the request")

    monkeypatch.setattr(render, "render", rendered)
    return asked


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with completed training runs, the newest of the small model, as deployments search it."""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-a-test")
    for number, (name, model) in enumerate({"first": "debug", "second": "demo", "third": "small"}.items()):
        final = tmp_path / name / "lora_weights" / "final_lora.pt"
        final.parent.mkdir(parents=True)
        final.touch()
        os.utime(final, (number, number))
        (tmp_path / name / "config.json").write_text(json.dumps({"model": model, "shards": {}}))
    (tmp_path / "third" / "lora_weights" / "final_lora.pt").unlink()  # not completed
    Variable.set("musicgen_runs", str(tmp_path), overwrite=True)
    return tmp_path


def asked_by(requests: list[RenderRequest], output: Path, **parameters: Any) -> RenderRequest:
    generate_music(output=str(output), return_state=True, **parameters)
    return requests.pop()


def test_a_part_made_again_has_its_pieces_prompt_and_model(requests: list[RenderRequest], tmp_path: Path) -> None:
    sidecar = {
        "prompt": "slow piano",
        "seed": 7,
        "model": "demo@sha256:0",
        "adapter": {"path": "a.pt", "strength": 0.5},
    }
    (tmp_path / "piece.json").write_text(json.dumps(sidecar))
    piece = str(tmp_path / "piece.wav")
    request = asked_by(requests, tmp_path, redo="8-14", continue_from=piece)
    [prompt] = request.prompts
    assert (prompt.text, prompt.seed, prompt.adapter, request.model) == ("slow piano", 7, ("a.pt:0.5",), "demo")
    assert (request.seams.redo, request.continue_from) == ("8-14", piece)
    request = asked_by(requests, tmp_path, redo="8-14", continue_from=piece, prompts=["drums"], adapter="base")
    assert [(prompt.text, prompt.adapter) for prompt in request.prompts] == [("drums", ())]


def test_options_and_lines_come_before_the_prompt_of_the_piece(requests: list[RenderRequest], tmp_path: Path) -> None:
    sidecar = {"prompt": "slow piano, 90 bpm", "fields": {"prompt": "slow piano", "tempo": 90}, "seed": 7}
    (tmp_path / "piece.json").write_text(json.dumps(sidecar | {"negative_prompt": "drums"}))
    piece, lines = str(tmp_path / "piece.wav"), tmp_path / "lines.jsonl"
    request = asked_by(requests, tmp_path, redo="8-14", continue_from=piece, seed=5, negative_prompt="brass", tempo=80)
    [prompt] = [one.with_defaults(request.control) for one in request.prompts]
    assert (prompt.text, prompt.negative_prompt) == ("slow piano, 80 bpm", "brass")
    assert (prompt.seed, request.settings.seed) == (None, 5)
    lines.write_text(json.dumps({"redo": "1-2", "continue_from": piece, "seed": 6}))
    [prompt] = asked_by(requests, tmp_path, prompts_file=str(lines), tempo=80).prompts
    assert (prompt.redo, prompt.prompt, prompt.seed, prompt.tempo) == ("1-2", "slow piano", 6, None)
    assert prompt.negative_prompt == "drums"


def test_a_job_that_regenerates_part_of_a_piece_needs_no_training(
    requests: list[RenderRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-a-test")
    Variable.set("musicgen_runs", str(tmp_path), overwrite=True)
    (tmp_path / "piece.json").write_text(json.dumps({"prompt": "piano", "adapter": {"path": "a.pt"}}))
    request = asked_by(requests, tmp_path, redo="8-14", continue_from=str(tmp_path / "piece.wav"))
    assert (request.adapters, request.prompts[0].adapter) == ((), ("a.pt",))


def test_a_job_takes_the_adapter_of_the_training_completed_last(
    requests: list[RenderRequest], runs: Path, tmp_path: Path
) -> None:
    request = asked_by(requests, tmp_path)
    assert request.model is None  # its base model is the adapter's
    assert request.adapters == (WeightedAdapter(str(runs / "second")),)
    assert asked_by(requests, tmp_path, model="debug").adapters == (WeightedAdapter(str(runs / "first")),)
    assert asked_by(requests, tmp_path, adapter="my_lora.pt").adapters == (WeightedAdapter("my_lora.pt"),)


@pytest.mark.parametrize("given", ["runs/first:0.7, b_lora.pt:-0.4", ["runs/first:0.7", "b_lora.pt:-0.4"]])
def test_several_adapters_are_a_text_or_a_list(
    requests: list[RenderRequest], tmp_path: Path, given: str | list[str]
) -> None:
    request = asked_by(requests, tmp_path, adapter=given, strengths=[0, 1])
    assert request.adapters == (WeightedAdapter("runs/first", 0.7), WeightedAdapter("b_lora.pt", -0.4))
    assert request.strengths == (0, 1)


def test_a_job_plays_the_base_model_when_asked(requests: list[RenderRequest], runs: Path, tmp_path: Path) -> None:
    request = asked_by(requests, tmp_path, adapter="base")
    assert (request.adapters, request.model, request.default_model) == ((), None, DEFAULT_MODEL)


def test_without_a_training_run_the_error_names_the_base_model(
    requests: list[RenderRequest], runs: Path, tmp_path: Path
) -> None:
    state: Any = generate_music(output=str(tmp_path), model="medium", return_state=True)
    assert state.is_failed() and not requests
    assert f"no completed training of medium in {runs}" in state.message
    assert "base" in state.message


def test_outside_of_deployments_no_adapter_is_the_base_model(requests: list[RenderRequest], tmp_path: Path) -> None:
    assert asked_by(requests, tmp_path).adapters == ()

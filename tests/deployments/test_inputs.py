"""Files that a command reads are checked before it starts a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from deployments import commands
from deployments.cli import main
from deployments.inputs import check_adapter, check_rendering, check_training
from musicgen_core.errors import AdapterError
from tests.stand_in_hub import StandInHub

DEBUG_CPU = ["--model", "debug", "--device", "cpu"]


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def start() -> None:
        raise AssertionError("a server is started")

    monkeypatch.setattr(commands, "ensure_api", start)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "OUT", "--adapter", "GONE"], "there is no adapter at GONE"),
        (["generate", "OUT", "--adapter", "TEXT"], "TEXT can't be read as an adapter"),
        (["generate", "OUT", "--prompts-file", "GONE"], "the prompts file GONE can't be read"),
        (["generate", "OUT", "--continue-from", "GONE"], "GONE can't be continued"),
        (["generate", "OUT", "--continue-from", "TEXT"], "TEXT can't be continued"),
        (["generate", "OUT", "--prompts-file", "PROMPTS"], "GONE can't be continued"),
        (["evaluate", "TOKENS", "--adapter", "GONE"], "there is no adapter at GONE"),
        (["train", "TOKENS", "OUT", "--init-adapter", "TEXT"], "TEXT can't be read as an adapter"),
        (
            ["train", "TOKENS", "OUT", "--prior-preservation", "0.2", "--prior-prompts", "GONE"],
            "the prompts file GONE can't be read",
        ),
    ],
)
def test_unusable_inputs_are_refused_before_a_server_starts(
    arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"GONE": "gone_lora.pt", "TEXT": "text_lora.pt", "PROMPTS": "p.jsonl", "OUT": "out", "TOKENS": "tokens"}
    paths = {name: str(tmp_path / file) for name, file in places.items()}
    Path(paths["TEXT"]).write_text("not an adapter")
    Path(paths["PROMPTS"]).write_text(f'{{"prompt": "jazz", "continue_from": "{paths["GONE"]}"}}')
    assert main([*(paths.get(one, one) for one in arguments), *DEBUG_CPU]) == 1
    for name in ("GONE", "TEXT"):
        expected = expected.replace(name, paths[name])
    assert expected in capsys.readouterr().err
    assert not Path(paths["OUT"]).exists()


def test_an_adapter_to_start_from_is_not_needed_to_resume(tmp_path: Path) -> None:
    given: dict[str, Any] = {"run_dir": str(tmp_path), "init_adapter": str(tmp_path / "gone_lora.pt")}
    with pytest.raises(AdapterError, match="there is no adapter"):
        check_training(given)
    check_training({**given, "resume": "elsewhere/latest.pt"})
    (tmp_path / "latest.pt").touch()
    check_training(given)


def test_a_pipe_of_prompts_is_left_to_the_run(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "prompts")
    check_rendering({"prompts_file": str(tmp_path / "prompts")})


def test_a_mistyped_path_is_not_left_to_the_run_as_the_hubs_are(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_adapter("runs/frist")
    assert hub.requests == []
    (tmp_path / "runs" / "first").mkdir(parents=True)
    with pytest.raises(AdapterError, match="there is no adapter at runs/frist, and runs/frist is not on the Hugging"):
        check_adapter("runs/frist")


def test_the_base_model_alone_is_no_adapter_to_look_for() -> None:
    check_adapter("base")

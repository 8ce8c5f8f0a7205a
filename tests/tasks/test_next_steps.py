"""Commands and forms of next steps."""

from __future__ import annotations

import json
import shlex
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import UUID

import pytest

from deployments.cli import COMMANDS
from deployments.inputs import parsed
from deployments.options import parse
from tasks.forms import form_path
from tasks.next_steps import Made, Outcome, Step, as_comment, from_comment

HOSTILE = 'it\'s "100 %" -- $(x) `y` & <!-- z --> \\ 日本'
PARAMETERS: dict[str, Any] = {
    "adapter": "/runs/a b",
    "prompts": [HOSTILE, "- slow", "1"],
    "compare": True,
    "spectrograms": False,
    "duration": 2.5,
    "seed": 1,
}
STEP = Step("Listen", "generate", PARAMETERS, {"output": "-music"})


@pytest.fixture(autouse=True)
def _without_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)


def test_a_command_gives_its_parameters_back_when_it_is_pasted() -> None:
    program, *line = shlex.split(STEP.command_line())
    assert program == "musicgen-flows"
    found = parse(COMMANDS, line)
    assert found is not None
    assert (found[0], found[1]) == (COMMANDS["generate"], PARAMETERS | {"adapter": ["/runs/a b"], "output": "./-music"})


def test_a_command_for_a_worker_gives_the_form_s_parameters_back() -> None:
    found = parse(COMMANDS, shlex.split(STEP.command_line(on_server=True))[1:])
    assert found is not None and found[1]["deployment"] == "generate-music" and found[1]["watch"]
    assert parsed(found[1]["param"]) == PARAMETERS


def test_a_text_that_reads_as_json_stays_a_text() -> None:
    step = Step("Train", "train", {"run_dir": "12"})
    found = parse(COMMANDS, shlex.split(step.command_line(on_server=True))[1:])
    assert found is not None and parsed(found[1]["param"]) == {"run_dir": "12"}


def test_commands_are_started_by_uv_where_this_process_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert Step("Check", "doctor", {"places": ["a", "b"]}).command_line() == "uv run musicgen-flows doctor a b"


def test_a_page_carries_its_outcome_whatever_is_in_it() -> None:
    outcome = Outcome((Made(HOSTILE, "/a--b/<c>"),), (STEP,), HOSTILE)
    comment = as_comment(outcome)
    assert comment.count("<") == comment.count(">") == 1 and "\n" not in comment
    assert from_comment(f"# Title\n\ntext\n\n{comment}") == outcome
    assert from_comment("a page of before") is None
    assert from_comment('<!-- outcome {"made": 1} -->') is None


def test_both_uis_read_the_parameters_of_a_form_s_link() -> None:
    path = form_path(UUID(int=7), PARAMETERS)
    [query] = parse_qs(urlsplit(path).query)["parameters"]
    assert json.loads(query) == json.loads(unquote(query)) == PARAMETERS  # one decodes it once, the other twice


def test_two_outcomes_add_up_with_the_next_steps_of_the_later() -> None:
    first = Outcome((Made("tokens", "/t"),), (Step("Train", "train"),), "Look.")
    second = Outcome((Made("adapter", "/r"),), (STEP,))
    assert first + second == Outcome((Made("tokens", "/t"), Made("adapter", "/r")), (STEP,), "Look.")

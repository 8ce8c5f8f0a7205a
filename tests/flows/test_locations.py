from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas import FlowRun
from prefect.flow_engine import run_flow
from prefect.utilities.names import generate_slug
from prefect.variables import Variable

from flows.locations import chosen_device, chosen_model, is_generated, music_name, run_name
from musicgen_core.config import DEFAULT_MODEL, DEFAULT_PROMPTS

OF_UI = ("theta3-draconis-void", "omega-vega", "mu-canis-majoris-a", "xi87-yed", "mu4--c", "Rustic-abcdef")
pytestmark = pytest.mark.usefixtures("prefect_server")


def named(template: Callable[[], str], given: str | None, parameters: dict[str, Any]) -> FlowRun:
    """Run a flow that is named by `template`; return its run. `given` is a name from a person, a UI or the server."""

    @flow(name="train-lora", flow_run_name=template)
    def train(
        run_dir: str | None = None,
        archives: str | None = None,
        prompts: list[str] | None = None,
        prompts_file: str | None = None,
    ) -> None: ...

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(train, parameters=parameters, name=given)
        run_flow(train, flow_run=run, parameters=parameters)
        return client.read_flow_run(run.id)


def time_of(run: FlowRun) -> str:
    assert run.created is not None
    return f"{run.created.astimezone():%Y-%m-%d %H:%M:%S}"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/data/jazz-2026-11-23", "jazz-2026-11-23"),
        ("/data/jazz/", "jazz"),
        ("/data/jazz/archive_batch_00*.zip", "jazz"),
        ("gs://bucket/runs/first", "first"),
        ("gs://bucket", "bucket"),
        ("runs/first", "first"),
        (".", Path.cwd().name),
        ("/", "/"),
    ],
)
def test_a_run_is_named_after_the_last_folder_and_its_time(place: str, name: str) -> None:
    run = named(run_name("train-lora", "run_dir"), None, {"run_dir": place})
    assert run.name == f"train-lora · {name} · {time_of(run)}"


def test_a_run_in_a_new_folder_is_named_after_it() -> None:
    run = named(run_name("train-lora", "run_dir"), None, {})
    assert re.fullmatch(r"train-lora · train-\d{8}-\d{6}-[0-9a-f]{6}", run.name)


def test_by_default_the_name_comes_from_the_prefect_variable() -> None:
    name = run_name("tokenize-archives", "archives", "test_of_names")
    run = named(name, None, {})
    assert run.name == f"tokenize-archives · {time_of(run)}"
    Variable.set("test_of_names", "/data/jazz")
    run = named(name, None, {})
    assert run.name == f"tokenize-archives · jazz · {time_of(run)}"


@pytest.mark.parametrize("given", ["My jazz evening", "jazz-evening", "alphabet-soup", "rock"])
def test_a_name_that_a_person_gave_is_kept(given: str) -> None:
    assert named(run_name("train-lora", "run_dir"), given, {"run_dir": "/data/jazz"}).name == given
    assert named(music_name("train-lora"), given, {}).name == given


@pytest.mark.parametrize("given", ["keen-otter", OF_UI[0], "train-lora", "train-lora · jazz · 2026-11-23 15:04:05"])
def test_a_generated_name_is_replaced(given: str) -> None:
    run = named(run_name("train-lora", "run_dir"), given, {"run_dir": "/data/jazz"})
    assert run.name == f"train-lora · jazz · {time_of(run)}"


def test_names_that_prefect_generates_are_recognized() -> None:
    made = [generate_slug(2) for _ in range(300)]
    assert [name for name in (*made, *OF_UI) if not is_generated(name)] == []


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({"prompts": ["slow\npiano", "drums"], "prompts_file": "/data/prompts.txt"}, "slow piano"),
        ({"prompts": ["piano " * 100]}, ("piano " * 10)[:59] + "…"),
        ({"prompts_file": "/data/prompts.txt"}, "prompts.txt"),
        ({}, DEFAULT_PROMPTS[0]),
    ],
)
def test_a_music_run_shows_its_first_prompt(parameters: dict[str, Any], shown: str) -> None:
    run = named(music_name("generate-music"), None, parameters)
    assert run.name == f"generate-music · {shown} · {time_of(run)}"


# Model and device


def test_model_and_device_default_to_prefect_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "of-a-test")
    assert (chosen_model(None), chosen_device("auto")) == (DEFAULT_MODEL, "auto")
    Variable.set("musicgen_model", "demo")
    Variable.set("musicgen_device", "cpu")
    try:
        assert (chosen_model(None), chosen_device("auto")) == ("demo", "cpu")
        assert (chosen_model("debug"), chosen_device("cuda")) == ("debug", "cuda")
        monkeypatch.delenv("PREFECT__RUNTIME__DEPLOYMENT__ID")  # as on the command line
        assert (chosen_model(None), chosen_device("auto")) == (DEFAULT_MODEL, "auto")
    finally:
        Variable.unset("musicgen_model")
        Variable.unset("musicgen_device")

"""Flows accept parameters both flat and grouped, and their signatures are those of the forms."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Pending
from pydantic.fields import FieldInfo

from flows.decorator import form_flow
from flows.estimate import estimate
from flows.evaluate_adapter import evaluate_adapter
from flows.export import export
from flows.finetune import finetune
from flows.generate_music import generate_music
from flows.parameters import (
    EstimateParameters,
    EvaluateParameters,
    ExportParameters,
    FinetuneParameters,
    GenerateParameters,
    Start,
    TokenizeParameters,
    Tokens,
    TrainParameters,
    grouped,
    groups_in,
)
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.config import HardwareSettings
from musicgen_core.settings import Settings

GROUPS = groups_in(TrainParameters)


class Probe(Settings):
    tokens: Tokens = ""
    start: Start = Start()
    hardware: HardwareSettings = HardwareSettings()


def probe(given: Probe) -> Any:
    """Return what was given."""
    return given.tokens, given.start, given.hardware


PROBE = form_flow(name="probe", form=Probe, flow_run_name=lambda: "probe")(probe)


@pytest.mark.parametrize(
    ("flow", "form"),
    [
        (tokenize_archives, TokenizeParameters),
        (train_lora, TrainParameters),
        (evaluate_adapter, EvaluateParameters),
        (generate_music, GenerateParameters),
        (finetune, FinetuneParameters),
        (estimate, EstimateParameters),
        (export, ExportParameters),
    ],
)
def test_a_flow_takes_what_the_command_line_offers(flow: Any, form: type[Settings]) -> None:
    parameters = inspect.signature(flow).parameters
    assert {name: each.default for name, each in parameters.items()} == {
        name: field.default for name, field in form.model_fields.items()
    }
    for name, annotation in flow.fn.__annotations__.items():
        given, offered = FieldInfo.from_annotation(annotation), form.model_fields[name]
        assert (given.annotation, given.description) == (offered.annotation, offered.description)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    "given",
    [
        {"init_from_latest": True, "compile_blocks": True},
        {"start": {"init_from_latest": True}, "hardware": {"compile_blocks": "on"}},
        {"start": {"resume": "auto"}, "init_from_latest": True, "compile_blocks": True, "init_adapter": None},
    ],
    ids=["by their own names", "in groups", "both"],
)
def test_deployments_accept_fields_flat_and_in_their_groups(given: dict[str, Any]) -> None:
    expected = ("", Start(init_from_latest=True), HardwareSettings(compile_blocks=True))
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(PROBE, parameters=given, state=Pending())
        assert run_flow(PROBE, flow_run=client.read_flow_run(run.id)) == expected  # as a worker does
    assert PROBE(**given) == expected


@pytest.mark.usefixtures("prefect_server")
def test_a_run_shows_what_it_was_given_and_its_groups() -> None:
    state: Any = PROBE(gpus=2, return_state=True)
    with get_client(sync_client=True) as client:
        shown = client.read_flow_run(state.state_details.flow_run_id).parameters
    assert shown.keys() == {"gpus", "tokens", "start", "hardware"}


@pytest.mark.usefixtures("prefect_server")
def test_null_is_an_empty_text_as_in_earlier_forms() -> None:
    assert PROBE(tokens=None)[0] == ""


def test_a_field_in_its_group_counts_unless_it_is_the_default() -> None:
    assert grouped({"gpus": 4, "hardware": {"gpus": 2}}, GROUPS) == {"hardware": {"gpus": 2}}
    assert grouped({"gpus": 4, "hardware": {"gpus": 1}}, GROUPS) == {"hardware": {"gpus": 4}}
    assert grouped({"gpus": 4, "hardware": HardwareSettings(gpus=2)}, GROUPS)["hardware"]["gpus"] == 2


def test_an_invalid_group_is_left_to_validation() -> None:
    assert grouped({"gpus": 4, "hardware": "all"}, GROUPS)["hardware"] == "all"


def test_parameters_without_a_group_stay() -> None:
    assert grouped({"lora_r": 4, "unknown": 1}, GROUPS) == {"lora_r": 4, "unknown": 1}

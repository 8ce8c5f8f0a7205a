"""Every number that a person can give is finite and bounded, whichever way it comes in."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic.fields import FieldInfo

from deployments import doctor, up
from deployments.estimate import estimate_archives
from deployments.export import export_adapter
from deployments.options import FlowOptions, UsageError, parse
from deployments.run_parameters import check, parsed
from flows.evaluate_adapter import evaluate_adapter
from flows.finetune import finetune
from flows.generate_music import generate_music
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.config import ConfigError, TrainSettings, validate
from musicgen_core.generation.prompts import Prompt

FLOWS = [tokenize_archives, train_lora, evaluate_adapter, generate_music, finetune]
FUNCTIONS = [*(flow.fn for flow in FLOWS), estimate_archives, export_adapter]
WRONG = [str(10**20), "-1", str(2**63), "1e309", "nan", "inf", "-inf"]


def numbers_of(function: Any) -> list[str]:
    """Names of its parameters that can be an int or a float, nested in unions too."""
    return [name for name, parameter in parameters_of(function).items() if _kinds(parameter.annotation) & {int, float}]


def parameters_of(function: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function, eval_str=True).parameters


def _kinds(annotation: Any) -> set[Any]:
    inner = FieldInfo.from_annotation(annotation).annotation
    return {inner}.union(*(_kinds(argument) for argument in get_args(inner) if not isinstance(argument, str)))


NUMBERS = [(function, name) for function in FUNCTIONS for name in numbers_of(function)]


def test_the_numbers_of_every_flow_and_command_are_found() -> None:
    found = {name for _, name in NUMBERS}
    assert {"limit", "max_workers", "learning_rate", "seed", "batch_size", "hourly_price", "variations"} <= found
    assert len(NUMBERS) > 60


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_numbers_out_of_range_are_refused_on_the_command_line(function: Any) -> None:
    for value in WRONG if (flags := [f"--{name.replace('_', '-')}" for name in numbers_of(function)]) else ():
        with pytest.raises(UsageError) as refused:
            parse("x", function, FlowOptions(), [f"{flag}={value}" for flag in flags])
        assert [problem.split(": ")[0] for problem in refused.value.problems] == flags


@pytest.mark.parametrize("flow", FLOWS, ids=[flow.name for flow in FLOWS])
def test_numbers_out_of_range_are_refused_for_deployments(flow: Any) -> None:
    schema = parameter_schema(flow.fn).model_dump_for_openapi()
    deployment: Any = SimpleNamespace(name=flow.name, parameter_openapi_schema=schema)
    for name in numbers_of(flow.fn):
        for value in [*WRONG, "NaN", "Infinity", "-Infinity"]:
            with pytest.raises(UsageError, match=name):
                check(parsed([f"{name}={value}"]), deployment)


@pytest.mark.parametrize("field", ["duration", "seed"])
def test_numbers_out_of_range_are_refused_in_a_prompts_file(field: str) -> None:
    for value in (10**20, -1, 2**63, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=field):
            validate(Prompt, {"prompt": "x", field: value})


@pytest.mark.parametrize(
    ("command", "option"),
    [(up.up, "--port"), (up.up, "--files-port"), (up.up, "--workers"), (doctor.doctor, "--clips")],
)
@pytest.mark.parametrize("value", [str(10**20), "-1", str(2**63), "0"])
def test_numbers_out_of_range_are_refused_by_up_and_doctor(command: Any, option: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{option}: .* not {value}"):
        command([f"{option}={value}"])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e309"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_number_that_is_not_finite_is_called_that(function: Any, value: str) -> None:
    floats = [name for name in numbers_of(function) if float in _kinds(parameters_of(function)[name].annotation)]
    for name in floats:
        with pytest.raises(UsageError) as refused:
            parse("x", function, FlowOptions(), [f"--{name.replace('_', '-')}={value}"])
        assert refused.value.problems == [f"--{name.replace('_', '-')}: input should be a finite number, not {value!r}"]


def test_a_setting_in_a_file_that_is_not_finite_is_called_that() -> None:
    with pytest.raises(ConfigError, match="learning_rate: input should be a finite number, not nan"):
        validate(TrainSettings, {"learning_rate": float("nan")})


def test_a_long_value_is_not_repeated_in_full() -> None:
    with pytest.raises(UsageError) as refused:
        parse("x", tokenize_archives.fn, FlowOptions(), ["--limit", "9" * 5000])
    assert len(str(refused.value)) < 500

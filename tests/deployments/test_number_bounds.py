"""Every number that a person can give is finite and bounded, whichever way it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic.fields import FieldInfo

from deployments.cli import COMMANDS
from deployments.inputs import arranged, parsed
from deployments.options import UsageError, parse
from flows.evaluate_adapter import evaluate_adapter
from flows.finetune import finetune
from flows.generate_music import generate_music
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.config import ConfigError, TrainSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.settings import validate

FLOWS = [tokenize_archives, train_lora, evaluate_adapter, generate_music, finetune]
COMMANDS_OF_FLOWS = ("tokenize", "train", "evaluate", "generate", "finetune")
NEGATIVE = "-1"  # right only for strengths
WRONG = [str(10**20), NEGATIVE, str(2**63), "1e309", "nan", "inf", "-inf"]


def numbers_of(annotations: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that can be an int or a float, nested in unions too."""
    return [name for name, annotation in annotations.items() if _kinds(annotation) & {int, float}]


def annotations_of(command: str) -> dict[str, Any]:
    return {name: field.annotation for name, field in COMMANDS[command].fields.items()}


def _kinds(annotation: Any) -> set[Any]:
    inner = FieldInfo.from_annotation(annotation).annotation
    return {inner}.union(*(_kinds(argument) for argument in get_args(inner) if not isinstance(argument, str)))


def refused(command: str, options: list[str]) -> list[str]:
    """Problems of these options; the arguments are there."""
    needed = [f"{COMMANDS[command].shown(name)}=x" for name in COMMANDS[command].required]
    arguments = [value for value in ("train-lora",) if command == "run"] or ["x"] * len(COMMANDS[command].arguments)
    with pytest.raises(UsageError) as error:
        parse(COMMANDS, [command, *arguments, *needed, *options])
    return error.value.problems


NUMBERS = {command: numbers_of(annotations_of(command)) for command in COMMANDS}
WITH_NUMBERS = [command for command, names in NUMBERS.items() if names]


def bounded(command: str, value: str) -> list[str]:
    """Names of the parameters that must refuse a value."""
    return [name for name in NUMBERS[command] if (name, value) != ("strengths", NEGATIVE)]


def test_the_numbers_of_every_command_are_found() -> None:
    found = {name for names in NUMBERS.values() for name in names}
    assert {"limit", "max_workers", "learning_rate", "seed", "batch_size", "hourly_price", "variations"} <= found
    assert {"port", "workers", "clips"} <= found
    assert sum(map(len, NUMBERS.values())) > 60


@pytest.mark.parametrize("command", WITH_NUMBERS)
def test_numbers_out_of_range_are_refused_on_the_command_line(command: str) -> None:
    for value in WRONG:
        flags = [COMMANDS[command].shown(name) for name in bounded(command, value)]
        found = refused(command, [f"{flag}={value}" for flag in flags])
        assert sorted(problem.split(": ")[0] for problem in found) == sorted(flags)


@pytest.mark.parametrize(("flow", "command"), zip(FLOWS, COMMANDS_OF_FLOWS, strict=True), ids=COMMANDS_OF_FLOWS)
def test_numbers_out_of_range_are_refused_for_deployments(flow: Any, command: str) -> None:
    schema = parameter_schema(flow).model_dump_for_openapi()
    deployment: Any = SimpleNamespace(name=flow.name, parameter_openapi_schema=schema)
    for value in [*WRONG, "NaN", "Infinity", "-Infinity"]:
        for name in bounded(command, value):
            with pytest.raises(UsageError, match=name):
                arranged(parsed([f"{name}={value}"]), deployment)


@pytest.mark.parametrize("field", ["duration", "seed"])
def test_numbers_out_of_range_are_refused_in_a_prompts_file(field: str) -> None:
    for value in (10**20, -1, 2**63, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=field):
            validate(Prompt, {"prompt": "x", field: value})


@pytest.mark.parametrize("option", ["up --port", "up --files-port", "up --workers", "doctor --clips"])
def test_a_count_of_zero_is_refused_by_up_and_doctor(option: str) -> None:
    command, flag = option.split()
    assert refused(command, [f"{flag}=0"]) == [f"{flag}: input should be greater than or equal to 1, not '0'"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e309"])
@pytest.mark.parametrize("command", WITH_NUMBERS)
def test_a_number_that_is_not_finite_is_called_that(command: str, value: str) -> None:
    annotations = annotations_of(command)
    for name in NUMBERS[command]:
        if float in _kinds(annotations[name]):
            flag = COMMANDS[command].shown(name)
            assert refused(command, [f"{flag}={value}"]) == [f"{flag}: input should be a finite number, not {value!r}"]


def test_a_setting_in_a_file_that_is_not_finite_is_called_that() -> None:
    with pytest.raises(ConfigError, match="learning_rate: input should be a finite number, not nan"):
        validate(TrainSettings, {"learning_rate": float("nan")})


def test_a_long_value_is_not_repeated_in_full() -> None:
    assert len("; ".join(refused("tokenize", ["--limit", "9" * 5000]))) < 500

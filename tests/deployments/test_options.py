from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from deployments.commands import EVALUATE, FINETUNE, GENERATE, TOKENIZE, TRAIN
from deployments.options import FlowOptions, UsageError, parse
from flows.evaluate_adapter import evaluate_adapter
from flows.finetune import finetune
from flows.generate_music import generate_music
from flows.tokenize_archives import tokenize_archives
from flows.train_lora import train_lora
from musicgen_core.config import SamplingSettings, Settings, TrainSettings
from musicgen_core.evaluation.request import EvaluateSettings

FLOWS = {
    "tokenize": (tokenize_archives.fn, TOKENIZE),
    "train": (train_lora.fn, TRAIN),
    "evaluate": (evaluate_adapter.fn, EVALUATE),
    "generate": (generate_music.fn, GENERATE),
    "finetune": (finetune.fn, FINETUNE),
}


def parsed(command: str, *arguments: str) -> dict[str, Any]:
    return parse(command, *FLOWS[command], arguments)


def problems(command: str, *arguments: str) -> list[str]:
    with pytest.raises(UsageError) as refused:
        parsed(command, *arguments)
    return refused.value.problems


# What is given


def test_only_what_was_given_is_passed_on_in_its_own_type() -> None:
    assert parsed("train", "T", "R") == {"tokens": "T", "run_dir": "R"}
    assert parsed("train", "T", "R", "--lora-r", "16", "--learning-rate=1e-5", "--device", "cpu") == {
        "tokens": "T",
        "run_dir": "R",
        "lora_r": 16,
        "learning_rate": 1e-5,
        "device": "cpu",
    }
    assert parsed("train", "T", "R", "--batch-size", "auto")["batch_size"] == "auto"
    assert parsed("train", "T", "R", "--batch-size", "4")["batch_size"] == 4


@given(st.permutations([["T"], ["R"], ["--seed", "3"], ["--resume=never"], ["--epochs", "2"]]))
@settings(max_examples=20)
def test_options_may_stand_before_between_and_behind_arguments(groups: list[list[str]]) -> None:
    first, second = (group[0] for group in groups if group[0] in "TR")
    assert parsed("train", *(argument for group in groups for argument in group)) == {
        "tokens": first,
        "run_dir": second,
        "seed": 3,
        "resume": "never",
        "num_epochs": 2,
    }


def test_a_short_name_and_the_settings_own_name_are_the_same_option() -> None:
    assert parsed("train", "T", "R", "--epochs", "7") == parsed("train", "T", "R", "--num-epochs", "7")
    assert parsed("train", "T", "R", "--epochs", "7")["num_epochs"] == 7


def test_an_option_that_may_be_repeated_gives_a_list() -> None:
    assert parsed("generate", "O", "--prompt", "one, two", "--prompt", "- three")["prompts"] == ["one, two", "- three"]
    assert parsed("generate", "O", "--prompts", "one")["prompts"] == ["one"]


def test_flags_take_no_value() -> None:
    assert parsed("generate", "--compare", "O", "--greedy") == {"compare": True, "output": "O", "greedy": True}


def test_what_is_decided_by_itself_can_be_switched_on_and_off() -> None:
    assert parsed("train", "--no-compile-blocks", "T", "--activation-checkpointing", "R") == {
        "tokens": "T",
        "run_dir": "R",
        "compile_blocks": False,
        "activation_checkpointing": True,
    }


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("train", TrainSettings),
        ("finetune", TrainSettings),
        ("generate", SamplingSettings),
        ("evaluate", EvaluateSettings),
    ],
)
def test_every_setting_is_a_dashed_option_with_its_description(
    command: str, kind: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(command, "--help")
    assert not ended.value.code
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in kind.model_fields.items():
        assert f"--{name.replace('_', '-')}" in shown.replace(",", "").split()
        assert field.description is not None and field.description in shown


@pytest.mark.parametrize("command", FLOWS)
def test_help_has_every_parameter_of_the_flow(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    function, options = FLOWS[command]
    with pytest.raises(SystemExit):
        parsed(command, "--help")
    shown = capsys.readouterr().out
    for name in inspect.signature(function).parameters:
        assert (name.upper() if name in options.positionals else f"--{name.replace('_', '-')}") in shown


# Wrong usage


def test_all_problems_are_told_at_once_by_the_names_that_the_user_knows() -> None:
    found = problems(
        "train", "--frobnicate=3", "T", "--lora-r", "0", "--device", "tpu", "--epochs", "some", "--batch-size", "0"
    )
    assert sorted(problem.split(":")[0] for problem in found) == [
        "--batch-size",
        "--device",
        "--epochs",
        "--lora-r",
        "RUN_DIR is missing",
        "there is no option --frobnicate",
    ]
    assert all(", not '" in problem for problem in found if problem.startswith("--"))


@pytest.mark.parametrize(
    ("command", "arguments", "empty"),
    [
        ("tokenize", ["", "T"], ["ARCHIVES"]),
        ("train", ["", ""], ["TOKENS", "RUN_DIR"]),
        ("evaluate", ["", "--adapter", "", "--output="], ["TOKENS", "--adapter", "--output"]),
        ("generate", ["O", "--model", "", "--prompts-file", ""], ["--prompts-file", "--model"]),
        ("finetune", ["A", "--tokens", "", "--run-dir", "R", "--output", "O"], ["--tokens"]),
    ],
)
def test_an_empty_argument_is_refused_and_not_taken_as_not_given(
    command: str, arguments: list[str], empty: list[str]
) -> None:
    found = problems(command, *arguments)
    assert [problem.partition(" is empty: ")[0] for problem in found] == empty


def test_texts_of_which_none_is_wanted_may_be_empty() -> None:
    assert parsed("tokenize", "A", "T", "--caption-prefix", "")["caption_prefix"] is None
    assert parsed("train", "T", "R", "--sample-prompt", "")["sample_prompts"] == [""]


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("tokenize", ["ARCHIVES", "TOKENS"]),
        ("train", ["TOKENS", "RUN_DIR"]),
        ("evaluate", ["TOKENS", "--adapter"]),
        ("generate", ["OUTPUT"]),
        ("finetune", ["ARCHIVES", "--tokens", "--run-dir", "--output"]),
    ],
)
def test_everything_that_is_missing_is_told(command: str, missing: list[str]) -> None:
    assert problems(command) == [f"{name} is missing" for name in missing]


def test_an_argument_too_many_is_named() -> None:
    assert problems("tokenize", "A", "T", "extra") == ["'extra' is one argument too many"]


def test_names_are_not_guessed_from_their_beginnings() -> None:
    assert problems("train", "T", "R", "--lora", "8")[0] == "there is no option --lora"


@pytest.mark.parametrize("arguments", [["--seed"], ["--resume", "--seed", "3"]])
def test_an_option_without_its_value_is_named(arguments: list[str]) -> None:
    (problem,) = problems("train", "T", "R", *arguments)
    assert arguments[0] in problem and "expected one argument" in problem


def test_a_negative_number_is_a_value_and_no_option() -> None:
    assert problems("train", "T", "R", "--seed", "-1") == [
        "--seed: input should be greater than or equal to 0, not '-1'"
    ]


def test_an_item_of_a_list_that_is_wrong_is_told_under_the_options_name() -> None:
    def flow(counts: Annotated[list[int] | None, Field(description="numbers")] = None) -> None: ...

    options = FlowOptions(short={"counts": "--count"})
    assert parse("x", flow, options, ["--count", "1", "--count", "2"]) == {"counts": [1, 2]}
    with pytest.raises(UsageError, match=r"--count: .*'two'"):
        parse("x", flow, options, ["--count", "1", "--count", "two"])


# YAML


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("lora_r: 4\nseed: 5\nresume: never\nbatch_size: 2\n")
    return path


def test_options_count_more_than_yaml_and_that_more_than_the_defaults(config: Path) -> None:
    assert parsed("train", "T", "R", "--config", str(config), "--lora-r", "16") == {
        "tokens": "T",
        "run_dir": "R",
        "lora_r": 16,
        "seed": 5,
        "resume": "never",
        "batch_size": 2,
    }


def test_problems_in_yaml_are_told_with_those_of_the_command_line(config: Path) -> None:
    config.write_text("lora_r: 0\nlora_rank: 4\nseed: 5\n")
    assert problems("train", "T", "--config", str(config), "--seed", "x", "--zzz") == [
        "there is no option --zzz",
        "RUN_DIR is missing",
        "--lora-r: input should be greater than or equal to 1, not 0",
        "--seed: input should be a valid integer, unable to parse string as an integer, not 'x'",
        "there is no setting lora_rank",
    ]


@pytest.mark.parametrize(
    "content", [b"lora_r: [", b"- a", b"7: 8", b"\xff\x80", b"seed: 2026-13-45", b"seed: !!python/name:x", b"[" * 9000]
)
def test_yaml_that_cannot_be_read_is_named_with_the_other_problems(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    found = problems("train", "T", "--config", str(config), "--lora-r", "0")
    assert len(found) == 3
    assert str(config) in found[0] and "\n" not in found[0]


def test_only_commands_with_settings_take_yaml(config: Path) -> None:
    assert problems("tokenize", "A", "T", f"--config={config}") == ["there is no option --config"]


# Flows that are not there yet


def test_any_function_with_described_parameters_becomes_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    def flow(
        *,
        place: Annotated[str | None, Field(description="100 % of it; by default the variable x")] = None,
        kind: Annotated[Literal["a", "b"], Field(description="which")] = "a",
        share: Annotated[float | None, Field(gt=0, le=1)] = None,
    ) -> None:
        """Do it."""

    options = FlowOptions(positionals=("place",))
    assert parse("x", flow, options, ["P", "--share", "0.5"]) == {"place": "P", "share": 0.5}
    with pytest.raises(UsageError, match="--kind: input should be 'a' or 'b', not 'c'; --share"):
        parse("x", flow, options, ["P", "--kind", "c", "--share", "2"])
    with pytest.raises(SystemExit):
        parse("x", flow, options, ["--help"])
    shown = capsys.readouterr().out
    assert "100 % of it\n" in shown and "(default a)" in shown and "Do it." in shown

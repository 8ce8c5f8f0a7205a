"""Wrong usage: all problems of a command line are reported together, by the user's names."""

from __future__ import annotations

import pytest
from pydantic import Field

from deployments.cli import COMMANDS, main
from deployments.command import Command
from deployments.options import UsageError, parse
from musicgen_core.language import translated
from musicgen_core.settings import Settings
from tests.deployments.parsing import given_to, problems


def test_all_problems_are_listed_together_by_the_users_names() -> None:
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
def test_all_missing_arguments_are_listed(command: str, missing: list[str]) -> None:
    assert problems(command) == [f"{name} is missing" for name in missing]


def test_an_argument_too_many_is_named() -> None:
    assert problems("tokenize", "A", "T", "extra") == ["'extra' is one argument too many"]


def test_names_are_not_guessed_from_their_beginnings() -> None:
    assert problems("train", "T", "R", "--lora", "8") == ["there is no option --lora; did you mean --lora-r?"]


def test_only_a_slip_or_an_unfinished_name_is_taken_for_another() -> None:
    assert problems("generate", "O", "--temper", "2") == ["there is no option --temper; did you mean --temperature?"]
    assert problems("train", "T", "R", "--temp=2") == ["there is no option --temp"]
    assert problems("demo", "--directory=D") == ["there is no option --directory"]


def test_an_argument_given_as_an_option_is_explained() -> None:
    usage = "uv run musicgen-flows train TOKENS RUN_DIR [OPTIONS]"
    expected = [
        f"--tokens is no option but the argument TOKENS: {usage}",
        f"--run-dir is no option but the argument RUN_DIR: {usage}",
    ]
    assert problems("train", "--tokens", "T", "--run-dir", "R") == expected
    assert problems("train", "--tokens=T", "--run-dir=R") == expected
    assert problems("generate", "--output=O", "--seed=x")[0].startswith("--output is no option but the argument OUTPUT")


def test_wrong_usage_is_reported_in_japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    found = problems("train", "--epoc=0", "--tokens=T", "--lora-dropout", "1", "--device=tpu", "--seed")
    assert {translated(problem) for problem in found} == {
        "--seed には値が必要です",
        "オプション --epoc はありません。もしかして: --epochs",
        "--tokens はオプションではなく引数 TOKENS です: uv run musicgen-flows train TOKENS RUN_DIR [OPTIONS]",
        "RUN_DIR がありません",
        "--epochs: 1 以上を指定してください（指定: '0'）",
        "--device: 'auto', 'cpu'、'cuda' のどれかを指定してください（指定: 'tpu'）",
        "--lora-dropout: 1.0 より小さい数を指定してください（指定: '1'）",
    }


def test_a_misspelt_options_value_is_no_argument_and_is_checked() -> None:
    assert problems("train", "--epoch", "no", "T", "R") == [
        "there is no option --epoch; did you mean --epochs?",
        "--epochs: input should be a valid integer, unable to parse string as an integer, not 'no'",
    ]
    assert problems("train", "--epoc=no", "T", "R", "--zzz=3", "--sed", "-1", "--lora-doar=x") == [
        "there is no option --epoc; did you mean --epochs?",
        "there is no option --zzz",
        "there is no option --sed; did you mean --seed?",
        "there is no option --lora-doar; did you mean --lora-dora?",
        "--lora-dora: expected no value, not 'x'",
        "--epochs: input should be a valid integer, unable to parse string as an integer, not 'no'",
        "--seed: input should be greater than or equal to 0, not '-1'",
    ]
    assert problems("train", "T", "R", "--comile-blocks") == [
        "there is no option --comile-blocks; did you mean --compile-blocks?"
    ]


def test_a_misspelt_command_is_reported_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"there is no command 'trian'; did you mean train\?"):
        parse(COMMANDS, ["trian", "T", "R"])
    with pytest.raises(UsageError, match=r"there is no command 'xyz'; there are demo, finetune, .*, doctor"):
        parse(COMMANDS, ["xyz"])
    with pytest.raises(UsageError, match=r"there is no option --versoin; did you mean --version\?"):
        parse(COMMANDS, ["--versoin"])


@pytest.mark.parametrize("arguments", [["--seed"], ["--resume", "--seed", "3"]])
def test_an_option_without_its_value_is_named(arguments: list[str]) -> None:
    (problem,) = problems("train", "T", "R", *arguments)
    assert problem == f"{arguments[0]}: expected a value"


def test_a_flag_with_a_value_is_named() -> None:
    assert problems("generate", "O", "--compare=maybe") == ["--compare: expected no value, not 'maybe'"]


def test_a_negative_number_is_a_value_and_no_option() -> None:
    assert problems("train", "T", "R", "--seed", "-1") == [
        "--seed: input should be greater than or equal to 0, not '-1'"
    ]


def test_an_invalid_list_item_is_reported_under_its_option() -> None:
    class Counts(Settings):
        counts: list[int] | None = Field(None, description="numbers")

    command = Command("", "", Counts, "", short={"counts": "--count"})
    assert given_to(command, "--count", "1", "--count", "2") == {"counts": [1, 2]}
    with pytest.raises(UsageError, match=r"--count: .*'two'"):
        given_to(command, "--count", "1", "--count", "two")


def test_weekly_goes_with_train_lora_and_off_takes_no_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["tokenize-archives"], ["train-lora", "--watch"]):
        assert main(["run", *wrong, "--weekly", "on"]) == 2
        assert "--weekly goes with train-lora, and not with --watch" in capsys.readouterr().err
    assert main(["run", "train-lora", "--weekly", "off", "-p", "seed=1"]) == 2
    assert "-p goes with --weekly on, not with off" in capsys.readouterr().err

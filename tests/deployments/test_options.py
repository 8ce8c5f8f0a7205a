from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from deployments.cli import COMMANDS
from deployments.command import Command
from deployments.options import UsageError, parse
from musicgen_core.language import translated
from musicgen_core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def parsed(command: str, *arguments: str) -> dict[str, Any]:
    return given_to(COMMANDS[command], *arguments, name=command)


def given_to(command: Command, *arguments: str, name: str = "x") -> dict[str, Any]:
    read = parse({name: command}, [name, *arguments])
    assert read is not None
    return read[1]


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


def test_short_and_full_name_are_the_same_option() -> None:
    assert parsed("train", "T", "R", "--epochs", "7") == parsed("train", "T", "R", "--num-epochs", "7")
    assert parsed("train", "T", "R", "--epochs", "7")["num_epochs"] == 7


def test_an_option_that_may_be_repeated_gives_a_list() -> None:
    assert parsed("generate", "O", "--prompt", "one, two", "--prompt", "- three")["prompts"] == ["one, two", "- three"]
    assert parsed("generate", "O", "--prompts", "one")["prompts"] == ["one"]


def test_flags_take_no_value() -> None:
    assert parsed("generate", "--compare", "O", "--greedy") == {"compare": True, "output": "O", "greedy": True}


def test_automatic_settings_can_be_switched_on_and_off() -> None:
    assert parsed("train", "--no-compile-blocks", "T", "--activation-checkpointing", "R") == {
        "tokens": "T",
        "run_dir": "R",
        "compile_blocks": False,
        "activation_checkpointing": True,
    }


def test_groups_have_unique_titles_and_share_no_names() -> None:
    for command in COMMANDS.values():
        titles = [kind.model_config["title"] for kind in command.groups.values()]
        assert len(set(titles)) == len(titles)
        inside = [name for kind in command.groups.values() for name in kind.model_fields]
        assert len(set(inside)) == len(inside)
        assert not set(inside) & set(command.form.model_fields)


# Completion


def test_a_shell_completes_commands_options_choices_and_files(tmp_path: Path) -> None:
    (tmp_path / "first_lora.pt").touch()
    home = {**os.environ, "HOME": str(tmp_path)}
    install = [sys.executable, "-m", "deployments.cli", "--install-completion", "--shell", "bash"]
    subprocess.run(install, env=home, check=True, capture_output=True, cwd=ROOT)
    script = """
    source ~/.bashrc
    complete_last() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _musicgen_flows; echo "${COMPREPLY[*]}"; }
    complete_last musicgen-flows tra
    complete_last musicgen-flows train --lora-d
    complete_last musicgen-flows train T R --device c
    complete_last musicgen-flows generate O --adapter fir
    """
    done = subprocess.run(["bash", "-c", script], env=home, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["train", "--lora-dropout --lora-dora", "cpu cuda", "first_lora.pt"]


# Wrong usage


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
def test_all_missing_arguments_are_listed(command: str, missing: list[str]) -> None:
    assert problems(command) == [f"{name} is missing" for name in missing]


def test_an_argument_too_many_is_named() -> None:
    assert problems("tokenize", "A", "T", "extra") == ["'extra' is one argument too many"]


def test_names_are_not_guessed_from_their_beginnings() -> None:
    assert problems("train", "T", "R", "--lora", "8") == ["there is no option --lora; did you mean --lora-r?"]


def test_only_a_slip_or_an_unfinished_name_is_taken_for_another() -> None:
    assert problems("generate", "O", "--temp", "2") == ["there is no option --temp; did you mean --temperature?"]
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


def test_of_an_option_that_is_repeated_the_last_value_counts() -> None:
    assert parsed("train", "T", "R", "--seed", "1", "--seed", "2")["seed"] == 2


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


# YAML


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("lora_r: 4\nseed: 5\nresume: never\nbatch_size: 2\n")
    return path


def test_options_override_yaml_and_yaml_overrides_defaults(config: Path) -> None:
    assert parsed("train", "T", "R", "--config", str(config), "--lora-r", "16") == {
        "tokens": "T",
        "run_dir": "R",
        "lora_r": 16,
        "seed": 5,
        "resume": "never",
        "batch_size": 2,
    }


def test_problems_in_yaml_are_listed_with_those_of_options(config: Path) -> None:
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
def test_unreadable_yaml_is_listed_with_the_other_problems(config: Path, content: bytes) -> None:
    config.write_bytes(content)
    found = problems("train", "T", "--config", str(config), "--lora-r", "0")
    assert len(found) == 3
    assert str(config) in found[0] and "\n" not in found[0]


def test_only_commands_with_settings_take_yaml(config: Path) -> None:
    assert problems("tokenize", "A", "T", f"--config={config}") == ["there is no option --config"]


# Commands that are not there yet


def test_any_settings_become_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    class Parameters(Settings):
        place: str | None = Field(None, description="100 % of [it]; by default the variable x")
        kind: Literal["a", "b"] = Field("a", description="which")
        share: float | None = Field(None, gt=0, le=1, description="part")

    command = Command("Do it.", "", Parameters, "x P", arguments=("place",))
    assert given_to(command, "P", "--share", "0.5") == {"place": "P", "share": 0.5}
    with pytest.raises(UsageError, match="--kind: input should be 'a' or 'b', not 'c'; --share"):
        given_to(command, "P", "--kind", "c", "--share", "2")
    assert parse({"x": command}, ["x", "--help"]) is None
    shown = capsys.readouterr().out
    assert "100 % of [it] " in shown and "which [choices: a, b] [default: a]" in shown and "Do it." in shown

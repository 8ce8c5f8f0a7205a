"""The help of every command, in both languages and in a narrow terminal."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
from rich.cells import cell_len

from deployments.cli import COMMANDS
from deployments.help import describe, without_default
from deployments.options import parse


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert parse(COMMANDS, [command, "--help"]) is None
    return capsys.readouterr().out


def in_one_line(shown: str) -> str:
    """The text in the second column of the help's panels, and all names."""
    return " ".join(shown.replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_parameter_with_choices_and_default(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    lines = [line.strip("│ ") for line in help_of(command, capsys).splitlines() if line.startswith("│")]
    for name, field in COMMANDS[command].fields.items():
        shown = COMMANDS[command].shown(name)
        line, *_ = [line for line in lines if shown in line.split()]
        assert field.description is not None and without_default(field.description) in line
        if field.default not in (None, "", (), []):
            default = " ".join(field.default) if isinstance(field.default, list) else field.default
            assert f"[default: {default}]" in line
        for choice in ("auto", "cpu", "cuda") if name == "device" else ():
            assert choice in line.partition("[choices: ")[2]


def test_a_default_of_deployments_stands_in_brackets_behind_the_default_itself() -> None:
    texts = {str(field.description) for command in COMMANDS.values() for field in command.fields.values()}
    of_deployments = [text for text in texts if "deployments: " in text]
    assert len(of_deployments) >= 4
    for text in of_deployments:
        assert re.search(r"(Default: |auto: )[^;.]+.* \(deployments: [^()]+\)$", text), text
    assert not [text for text in texts if re.search("[Bb]y default,? for a deployment|for a deployment the", text)]


def test_help_shows_defaults_of_zero_and_false(capsys: pytest.CaptureFixture[str]) -> None:
    shown = in_one_line(help_of("train", capsys))
    assert "the same one gives the same result [default: 0]" in shown
    assert "slower [default: False]" in shown


def test_help_shows_essential_options_before_groups(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of("finetune", capsys)
    places = [shown.index(f"─ {title} ─") for title in ("Arguments", "Required", "Options", "LoRA", "Hardware")]
    assert places == sorted(places)
    assert places[2] < shown.index("--epochs") < places[3] < shown.index("--lora-dora") < places[4]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_breaks_no_option_and_no_example_at_80_columns(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of(command, capsys)
    assert max(map(len, shown.splitlines())) <= 80
    words = shown.replace("│", " ").split()
    for name in COMMANDS[command].fields:
        assert COMMANDS[command].shown(name) in words
    assert f"\nExample:\n{COMMANDS[command].example}\n" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_each_command_is_right_usage(command: str) -> None:
    uv, run, program, *line = shlex.split(COMMANDS[command].example.replace("\\\n", ""))
    assert (uv, run, program) == ("uv", "run", "musicgen-flows")
    read = parse(COMMANDS, line)
    assert read is not None and read[0] is COMMANDS[command]


def test_no_required_option_has_a_default() -> None:
    for command in COMMANDS.values():
        assert all(command.fields[name].default in (None, "", ()) for name in command.required)
    assert parse(COMMANDS, ["export", "A", "O"]) == (COMMANDS["export"], {"adapter": ["A"], "out": "O"})


@pytest.mark.parametrize("line", ["train --help", "train T --lora-r 0 --epoch", "--version"])
def test_help_and_usage_errors_import_neither_prefect_nor_torch(line: str) -> None:
    slow = {"prefect", "torch", "fsspec", "yaml", "numpy"}
    code = f"import sys; from deployments.cli import main; main({line.split()}); print({slow} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_in_japanese_for_a_japanese_reader(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    shown = "".join(help_of(command, capsys).split())
    assert shown.startswith("使い方:uvrunmusicgen-flows") and "例:" in shown
    for english in ("Usage", "bydefault", "[default:", "[choices:", "Options─", "Example", "Showthe"):
        assert english not in shown
    for name in COMMANDS[command].fields:
        assert name.upper() in shown if name in COMMANDS[command].arguments else COMMANDS[command].shown(name) in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_japanese_help_breaks_no_latin_word_at_80_columns(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(command, capsys)
    assert max(map(cell_len, shown.splitlines())) <= 80
    described = " ".join(describe(COMMANDS[command], name) for name in COMMANDS[command].fields)
    words = set(re.findall(r"[A-Za-z0-9_*./-]{2,}", described))
    assert words <= set(re.findall(r"[A-Za-z0-9_*./-]{2,}", shown))

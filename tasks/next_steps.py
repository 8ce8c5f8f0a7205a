"""Outcome of a command or flow run and its next steps: one definition for the terminal and the Prefect UI.

Nothing here imports Prefect, because commands that need no server use it, too.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from musicgen_core.language import message, stored_message

PROGRAM = "musicgen-flows"
DEPLOYMENTS = {
    "caption": "caption-archives",
    "tokenize": "tokenize-archives",
    "train": "train-lora",
    "evaluate": "evaluate-adapter",
    "generate": "generate-music",
    "finetune": "finetune",
    "estimate": "estimate",
    "export": "export",
}
"""The deployment that corresponds to each command"""
_ARGUMENTS = {
    "caption": ("archives", "metadata"),
    "estimate": ("archives",),
    "tokenize": ("archives", "tokens"),
    "train": ("tokens", "run_dir"),
    "generate": ("output",),
    "evaluate": ("tokens",),
    "export": ("adapter", "out"),
    "run": ("deployment",),
    "doctor": ("places",),
    "votes": ("places",),
}
"""Positional parameters of each command"""
_OPTIONS = {"prompts": "--prompt", "param": "-p"}


PIECE = message("{seconds:g} s, {voice}: {title}")
"""What a piece of music is called as an output"""


@dataclass(frozen=True)
class Made:
    """An output of a run, with its path or URL."""

    thing: str
    place: str


@dataclass(frozen=True)
class Step:
    """A next step.

    Attributes:
        text: a short description, without a full stop.
        command: the command to run.
        parameters: parameters of the command and of its deployment, by flat name.
        places: locations that only the command needs, by flat name: a deployment has its own.
    """

    text: str
    command: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def deployment(self) -> str | None:
        """Return the deployment that corresponds to the command; None: there is none."""
        return DEPLOYMENTS.get(self.command)

    def command_line(self, on_server: bool = False) -> str:
        """Return the command as shell text.

        Args:
            on_server: return the command that runs the deployment on a worker, if there is a deployment.
        """
        if on_server and self.deployment is not None:
            param = [f"{name}={_json(value)}" for name, value in self.parameters.items()]
            return command_line("run", {"deployment": self.deployment, "param": param, "watch": True})
        return command_line(self.command, {**self.parameters, **self.places})


@dataclass(frozen=True)
class Outcome:
    """The outcome of a command or a flow run.

    Attributes:
        made: its outputs.
        steps: the next steps.
        notice: a sentence to read before everything else; may be empty.
        is_refused: whether the run was refused for its parameters, so that the same ones would be refused again.
    """

    made: tuple[Made, ...] = ()
    steps: tuple[Step, ...] = ()
    notice: str = ""
    is_refused: bool = False

    def __add__(self, later: Outcome) -> Outcome:
        """Return the outputs of both, with the next steps of the later one."""
        both = self.notice and later.notice
        notice = f"{self.notice} {later.notice}" if both else self.notice or later.notice  # else as a message
        return Outcome((*self.made, *later.made), later.steps, notice)


def command_line(command: str, parameters: Mapping[str, Any]) -> str:
    """Return a command of this project as shell text."""
    words = [PROGRAM, command]
    arguments = _ARGUMENTS.get(command, ())
    for name in arguments:
        value = parameters.get(name, [])
        words += map(_argument, map(str, value if isinstance(value, list) else [value]))
    for name, value in parameters.items():
        if name not in arguments:
            words += _option(name, value)
    return in_shell(*words)


def in_shell(*words: str) -> str:
    """Return a quoted command of this environment, with `uv run` in front if this process was started by it."""
    return shlex.join([*(("uv", "run") if "UV_RUN_RECURSION_DEPTH" in os.environ else ()), *words])


def _argument(value: str) -> str:
    return f"./{value}" if value.startswith("-") else value  # else it would be parsed as an option


def _option(name: str, value: Any) -> Iterable[str]:
    option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
    if value is True:
        return [option]
    if value is False:
        return [f"--no-{option.removeprefix('--')}"]
    values = value if isinstance(value, list | tuple) else [value]
    # A value that begins with a hyphen would be parsed as an option.
    return [
        word for one in map(str, values) for word in ([f"{option}={one}"] if one.startswith("-") else [option, one])
    ]


def _json(value: Any) -> str:
    """Return a value as `run -p name=value` parses it: JSON, or text that is not JSON."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value, ensure_ascii=False)


def as_comment(outcome: Outcome) -> str:
    """Return the outcome as a Markdown comment, which pages don't show."""
    text = json.dumps(asdict(outcome))
    return f"<!-- outcome {text.replace('<', chr(92) + 'u003c').replace('>', chr(92) + 'u003e')} -->"


def from_comment(page: str) -> Outcome | None:
    """Return the outcome in the comment of a Markdown page; None: there is none."""
    found = re.search(r"<!-- outcome (\{.*\}) -->$", page, re.MULTILINE)
    try:
        stored = json.loads(found[1]) if found else None
        return stored and Outcome(
            made=tuple(Made(**{**made, "thing": stored_message(made["thing"], (PIECE,))}) for made in stored["made"]),
            steps=tuple(Step(**{**step, "text": stored_message(step["text"])}) for step in stored["steps"]),
            notice=stored_message(stored["notice"]),
            is_refused=bool(stored.get("is_refused")),  # older pages have none
        )
    except (ValueError, TypeError, KeyError):  # a page written by another version
        return None

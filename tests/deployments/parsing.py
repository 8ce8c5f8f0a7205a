"""The parameters that are read from a command line, and the problems that are found in it."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.cli import COMMANDS
from deployments.command import Command
from deployments.options import UsageError, parse


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

"""The output of `doctor`: its table and its list of fixes."""

from __future__ import annotations

import re

import pytest

from deployments.cli import main

DEBUG = ["--model", "debug", "--device", "cpu"]
LOGIN = "admin:login-not-to-be-seen"
SECRET = "wandb-0123456789-not-to-be-seen"


def rows(printed: str) -> dict[str, tuple[str, str]]:
    """Return the level and text of each check's finding. The last row counts for a check with several."""
    lines = re.findall(r"^  (\S.*?) +(ok|warning|problem) +(.*)$", printed, re.MULTILINE)
    return {name: (level, found) for name, level, found in lines}


def fixes(printed: str) -> list[str]:
    """The numbered list under `To fix:`."""
    return re.findall(r"^\d+\. (.*)$", printed.partition("To fix:")[2].partition("If you want")[0], re.MULTILINE)


def run_doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["doctor", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err and captured.err == ""
    return code, captured.out

"""The line on stderr of a command that fails."""

from __future__ import annotations

import pytest


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return this project's only line on stderr, and expect no traceback."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]

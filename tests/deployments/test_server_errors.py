"""The lines of its server's log that `up` shows."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from prefect.logging.formatters import JsonFormatter

from deployments.server_errors import describe_record, follow_errors


def logged(message: str, *arguments: object, error: Exception | None = None) -> str:
    """A record as Prefect's server logs it."""
    try:
        if error:
            raise error
    except Exception:
        cause = sys.exc_info()
    else:
        cause = None
    record = logging.LogRecord("docket.worker", logging.ERROR, __file__, 1, message, arguments, cause)
    return JsonFormatter("default", "", "%").format(record)


def shown(capsys: pytest.CaptureFixture[str], *lines: str) -> list[str]:
    log = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    follow_errors(log).join()
    assert log.closed
    return capsys.readouterr().out.splitlines()


def test_a_services_error_is_one_line_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    error = logged("↩ [%s] %s", "113ms", "schedule_deployments()", error=ValueError("no\nbulk DML"))
    first, hint = shown(capsys, error)
    assert first == "Prefect server: ↩ [113ms] schedule_deployments(): ValueError: no bulk DML"
    assert "uv run musicgen-flows doctor" in hint


def test_an_error_in_each_loop_is_shown_ever_more_rarely(capsys: pytest.CaptureFixture[str]) -> None:
    loops = [logged("schedule_deployments() took %s", number, error=ValueError("no")) for number in range(100)]
    *lines, last = [line for line in shown(capsys, *loops) if line.startswith("Prefect server: ")]
    assert len(lines) == 6 and last.endswith("ValueError: no (64 times)")
    assert len(shown(capsys, logged("one"), logged("another"))) == 3


def test_a_locked_database_is_shown_when_it_is_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    locked = logged("error", error=ValueError("(sqlite3.OperationalError) database is locked\n[SQL: SELECT 'prompt']"))
    assert shown(capsys, *[locked] * 7) == []
    first, _ = shown(capsys, *[locked] * 8)
    assert first == "Prefect server: error: ValueError: (sqlite3.OperationalError) database is locked (8 times)"


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "{}", '{"msg": "%d", "args": ["x"]}', "[1]"])
def test_other_lines_are_shown_unchanged(line: str) -> None:
    assert describe_record(line) == line


def test_markup_in_an_error_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, logged("[bold]%s[/bold]", {"a": 1}))[0] == "Prefect server: [bold]{'a': 1}[/bold]"

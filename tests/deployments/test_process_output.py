"""The lines of its server's log and of its workers' output that `up` shows."""

from __future__ import annotations

import io
import logging
import subprocess
import sys

import pytest
from prefect.logging.formatters import JsonFormatter

from deployments.process_output import describe_record, follow_errors, follow_output
from tests.hostile import ESCAPES, is_inert_terminal_text


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


def reported(capsys: pytest.CaptureFixture[str], *lines: str) -> list[str]:
    log = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    follow_errors(log).join()
    assert log.closed
    return capsys.readouterr().out.splitlines()


def test_a_services_error_is_one_line_with_its_cause(capsys: pytest.CaptureFixture[str]) -> None:
    error = logged("↩ [%s] %s", "113ms", "schedule_deployments()", error=ValueError("no\nbulk DML"))
    first, hint = reported(capsys, error)
    assert first == "Prefect server: ↩ [113ms] schedule_deployments(): ValueError: no bulk DML"
    assert "uv run musicgen-flows doctor" in hint


def test_an_error_in_each_loop_is_shown_ever_more_rarely(capsys: pytest.CaptureFixture[str]) -> None:
    loops = [logged("schedule_deployments() took %s", number, error=ValueError("no")) for number in range(100)]
    *lines, last = [line for line in reported(capsys, *loops) if line.startswith("Prefect server: ")]
    assert len(lines) == 6 and last.endswith("ValueError: no (64 times)")
    assert len(reported(capsys, logged("one"), logged("another"))) == 3


def test_a_locked_database_is_shown_when_it_is_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    locked = logged("error", error=ValueError("(sqlite3.OperationalError) database is locked\n[SQL: SELECT 'prompt']"))
    assert reported(capsys, *[locked] * 7) == []
    first, _ = reported(capsys, *[locked] * 8)
    assert first == "Prefect server: error: ValueError: (sqlite3.OperationalError) database is locked (8 times)"


@pytest.mark.parametrize("line", ["Traceback (most recent call last):", "{}", '{"msg": "%d", "args": ["x"]}', "[1]"])
def test_other_lines_are_shown_unchanged(line: str) -> None:
    assert describe_record(line) == line


def test_markup_in_an_error_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert reported(capsys, logged("[bold]%s[/bold]", {"a": 1}))[0] == "Prefect server: [bold]{'a': 1}[/bold]"


PRINTED = """\
Worker 'host-gpu-0' started!

Received SIGTERM. Sending SIGINT to the process worker (PID 7)...
Worker 'host-gpu-0' stopped!
"""


def show(printed: str) -> None:
    code = f"import sys; sys.stdout.reconfigure(encoding='utf-8'); print({printed!r}, end='')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as worker:
        follow_output(worker).join()


def test_of_a_workers_routine_only_its_readiness_is_shown(shown: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    show(PRINTED)
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    show(PRINTED)
    assert shown.getvalue().splitlines() == [
        "Worker host-gpu-0 is ready",
        "ワーカー host-gpu-0 の準備ができました",
    ]


def test_whatever_else_a_worker_prints_is_shown(shown: io.StringIO) -> None:
    refused = "Unable to start worker. Please ensure you have the necessary dependencies installed."
    show(f"{refused}\n{ESCAPES}\n")
    assert shown.getvalue().splitlines()[0] == refused
    assert is_inert_terminal_text(shown.getvalue()) and len(shown.getvalue().splitlines()) == 2

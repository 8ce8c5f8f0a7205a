"""The lines of its workers' output that `up` shows."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from deployments.worker_output import follow_output
from tests.hostile import ESCAPES, is_inert_terminal_text

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

"""A command whose process group gets a signal to stop saves, reports it, and leaves no process behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deployments.environment import DEFAULTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def in_session(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == session:
                found.append(pid)
    return found


def states_in(home: Path) -> list[tuple[str, str]]:
    """Return type and message of the state of each flow run in a server's database."""
    with contextlib.closing(sqlite3.connect(home / "prefect.db")) as database:
        of_runs = "FROM flow_run JOIN flow_run_state AS state ON state.id = flow_run.state_id"
        return database.execute(f"SELECT state.type, state.message {of_runs}").fetchall()


def test_a_temporary_server_ends_with_a_command_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import time\nfrom deployments.api import start_temporary_server\n"
        "start_temporary_server()\nprint('up', flush=True)\ntime.sleep(1000)"
    )
    environment = {**os.environ, **DEFAULTS, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": ""}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None and "up\n" in iter(process.stdout.readline, "")
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert started and psutil.wait_procs(started, timeout=120)[1] == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_training_run_that_is_stopped_saves_and_ends_its_server(
    stop: signal.Signals, demo_tokens: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "deployments.cli", "train", str(demo_tokens), str(tmp_path / "run")]
    options = ["--model", "debug", "--epochs", "500", "--segment-seconds", "1", "--full-models", "none"]
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": ""}
    process = subprocess.Popen(
        [*command, "--resume", "never", *options],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 400
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("uvicorn" in " ".join(child.cmdline()) for child in started)
        os.killpg(process.pid, stop)  # as a terminal, `timeout` and service managers do
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 130
        kept, again = stderr.splitlines()[-2:]
        assert kept == "Interrupted. What was finished is kept; this does the rest:"
        assert shlex.split(again)[-len(options) - 3 :] == ["train", str(demo_tokens), str(tmp_path / "run"), *options]
        assert (tmp_path / "run" / "latest.pt").exists()
        deadline = time.monotonic() + 120
        while in_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert in_session(process.pid) == []
        assert psutil.wait_procs(started, timeout=120)[1] == []
        [(state, message)] = states_in(tmp_path / "prefect")
        if stop == signal.SIGTERM:  # of `timeout` or a service manager: nobody decided about the run
            assert state == "CRASHED"
        else:
            assert state == "CANCELLED" and message.startswith("interrupted in the terminal at step ")
            assert message.endswith(f"; to continue from there: {again}")
    finally:
        for pid in in_session(process.pid):
            os.kill(pid, signal.SIGKILL)

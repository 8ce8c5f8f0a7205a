"""A command's temporary Prefect server. Unlike the one that Prefect would start, it reports why it failed."""

from __future__ import annotations

import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from typing import IO, TYPE_CHECKING

from deployments.console import print_text
from deployments.environment import is_healthy
from flows.startup import be_sent_at_parents_death
from musicgen_core.errors import MusicgenError
from musicgen_core.language import message, say
from musicgen_core.stages import mention

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

MOMENT_SECONDS = 1.0
PORTS = 3
"""Ports to try: another process may take one between the choice and the start."""


def start_temporary_server() -> None:
    """Start a server as Prefect does without a configured API, and make Prefect use it. It ends with this process.

    It has its own session: Ctrl-C, a closed terminal and `timeout` signal whole process groups, and an interrupted run
    must still report to the server.

    Raises:
        MusicgenError: the server does not start. The message has its reason.
    """
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()  # the one that Prefect's clients ask for
    if server.running:
        return
    mention(message("starting a temporary Prefect server"))
    with tempfile.TemporaryFile() as log:
        for _ in range(PORTS):
            server.port = server.find_available_port()
            server.server_process = _start(server.port, log)
            atexit.register(_stop, server)
            server.running = True
            if _comes_up(server.api_url, server.server_process):
                return
            server.stop()
            text = _text(log)
            if "address already in use" not in text.lower():
                break
    raise explain_server(text)


def _start(port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    import prefect
    from prefect.settings import get_current_settings

    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(prefect.__module_path__.parent)]
    command += ["--factory", "prefect.server.api.server:create_app", "--lifespan", "on", "--log-level", "error"]
    return subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env={
            **os.environ,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
            **get_current_settings().to_environment_variables(exclude_unset=True),
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",  # the console is a file here
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=partial(be_sent_at_parents_death, signal.SIGTERM),
    )


def _stop(server: SubprocessASGIServer) -> None:
    """Stop the server at this process's exit, with a message if it takes more than a moment."""
    if process := server.server_process:
        process.terminate()
        try:
            process.wait(timeout=MOMENT_SECONDS)
        except subprocess.TimeoutExpired:
            print_text(say("stopping the temporary Prefect server …"), "dim")
    server.stop()


def _comes_up(api: str, process: subprocess.Popen[bytes]) -> bool:
    from prefect.settings import PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

    deadline = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    while time.monotonic() < deadline and process.poll() is None:
        if is_healthy(api):
            return True
        time.sleep(0.1)
    return False


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode(errors="replace")


def explain_server(log: str) -> MusicgenError:
    """Return the error of a server that did not start, from its output."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    raised = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    if not lines:
        return MusicgenError(
            message("the Prefect server did not answer in time after its start"),
            message(
                "The machine may be busy: run it again, or first start a server in another terminal: "
                "uv run musicgen-flows up"
            ),
        )
    return MusicgenError(
        message("the Prefect server can't start: {reason}", reason=(raised or lines)[-1][:500]),
        message("All of its output: uv run prefect server start"),
    )

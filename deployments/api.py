"""The Prefect API of a command: the configured one, checked, or a temporary server that reports why it failed."""

from __future__ import annotations

import atexit
import contextlib
import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from deployments.console import print_text
from deployments.environment import is_healthy
from flows.startup import be_sent_at_parents_death
from musicgen_core.errors import ConfigError, MusicgenError
from musicgen_core.language import message, say
from musicgen_core.stages import mention

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

ANSWER_SECONDS = 90.0
"""For a server that is busy, such as while `up` starts its workers. One that is not there is noticed at once."""

MOMENT_SECONDS = 1.0
PORTS = 3
"""Ports to try: another process may take one between the choice and the start."""


def ensure_api() -> None:
    """Check the configured Prefect API. Start a temporary server if none is configured.

    Raises:
        MusicgenError: the API does not answer or is not Prefect's, or the temporary server can't start.
    """
    if has_api():
        check_api()
        return
    check_home()
    check_database()
    start_temporary_server()


def has_api() -> bool:
    """Return whether an API is configured, in the environment or in Prefect's profile."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is not None


def check_api() -> None:
    """Raise MusicgenError if the configured API does not answer as Prefect's does, or refuses the login."""
    from deployments.checks.finding import Finding
    from deployments.checks.server import ask_version

    answer = ask_version(ANSWER_SECONDS)
    if isinstance(answer, Finding):
        raise MusicgenError(answer.found, answer.fix)


def explain_lost(error: Exception) -> MusicgenError | None:
    """Return the error of a Prefect server that stopped answering during a command, or None for any other error."""
    import httpx
    from prefect.settings import get_current_settings

    from deployments.checks.finding import describe, redact

    url = get_current_settings().api.url
    server = message("the Prefect server at {url}", url=redact(url)) if url else message("the temporary Prefect server")
    if isinstance(error, httpx.HTTPStatusError) and error.response.is_server_error:
        found = message("{server} fails (HTTP {status})", server=server, status=error.response.status_code)
        step = message("Check its services: uv run musicgen-flows doctor")
    elif isinstance(error, httpx.TransportError):
        found = message("{server} stopped answering ({reason})", server=server, reason=describe(error))
        step = message("Start it again: uv run musicgen-flows up")
    else:
        return None
    again = message("Run the same command again: it continues where it stopped")
    return MusicgenError(found, message("{found}. {next_step}", found=step, next_step=again) if url else again)


def check_home() -> None:
    """Raise ConfigError if Prefect's home, which holds its database, can't be written to."""
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise ConfigError(
            message("Prefect can't write to its folder {home} ({strerror})", home=home, strerror=error.strerror),
            message("Name another one: export PREFECT_HOME=FOLDER"),
        ) from error


def check_database() -> None:
    """Compare the schema of the server's SQLite file with the installed Prefect's, without starting a server.

    Raises:
        MusicgenError: the database belongs to a newer Prefect.
    """
    from prefect.settings import get_current_settings

    url = get_current_settings().server.database.connection_url
    database = Path(url.get_secret_value().removeprefix("sqlite+aiosqlite:///").partition("?")[0]) if url else None
    if database is None or not database.is_file():  # new, in memory, or PostgreSQL
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            revisions = {revision for (revision,) in connection.execute("select version_num from alembic_version")}
    except sqlite3.Error:  # the server will say what is wrong
        return
    if not revisions <= known_revisions():
        raise MusicgenError(
            message(
                "the Prefect server can't start: its database {database} belongs to a newer Prefect", database=database
            ),
            message("Use another folder, export PREFECT_HOME=FOLDER, or install the newer Prefect"),
        )


def known_revisions() -> set[str]:
    """Return the revisions of the database's schema that the installed Prefect has migrations to."""
    import prefect

    migrations = prefect.__module_path__ / "server" / "database" / "_migrations" / "versions" / "sqlite"
    scripts = (script.read_text(encoding="utf-8") for script in migrations.glob("*.py"))
    return {found[1] for script in scripts if (found := re.search(r"""^revision\b.*=\s*["'](\w+)""", script, re.M))}


def check_settings() -> None:
    """Import the packages that read their settings from the environment at import.

    Raises:
        ConfigError: a setting is invalid.
    """
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # what is wrong is said below, or by check_home
            import prefect.context  # noqa: F401
    except ValueError as error:  # also of TOML files and encodings
        raise ConfigError(
            message("Prefect's settings can't be read ({reason})", reason=_reason(error)),
            message(
                "Correct or unset them: they come from variables PREFECT_…, and from .env, prefect.toml and "
                "pyproject.toml in the working directory"
            ),
        ) from error
    numbers = [name for name in sorted(os.environ) if name.startswith("HF_") and name.endswith(("_TIMEOUT", "_SIZE"))]
    try:
        if numbers:
            import huggingface_hub.constants  # noqa: F401
    except ValueError as error:
        given = ", ".join(f"{name}={os.environ[name]}" for name in numbers)
        raise ConfigError(
            message("a variable of the Hugging Face Hub is not a number: {given}", given=given), message("Correct it")
        ) from error


def _reason(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    return "; ".join(
        f"{_variables(str(problem['input'])) or '.'.join(map(str, problem['loc']))}: {problem['msg']}"
        for problem in error.errors()
        if problem["type"] != "default_factory_not_called"  # for it depends on another that is wrong
    )


def _variables(value: str) -> str:
    return ", ".join(
        f"{name}={value}" for name in os.environ if name.startswith("PREFECT_") and os.environ[name] == value
    )


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
            server.server_process = _start_process(server.port, log)
            atexit.register(_stop_at_exit, server)
            server.running = True
            if _comes_up(server.api_url, server.server_process):
                return
            server.stop()
            log.seek(0)
            text = log.read().decode(errors="replace")
            if "address already in use" not in text.lower():
                break
    raise explain_server(text)


def _start_process(port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
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


def _stop_at_exit(server: SubprocessASGIServer) -> None:
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

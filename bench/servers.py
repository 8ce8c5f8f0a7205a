"""Temporary PostgreSQL, Prefect servers and workers for benchmarks and tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deployments.environment import is_healthy

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs, on PATH or in Debian's location; None if not installed."""
    on_path = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[4]))
    found = [Path(on_path).resolve()] if on_path else debian
    return found[-1].parent if found else None


@dataclass(frozen=True)
class Postgres:
    """A running cluster. Its programs run as `user`, since they refuse to run as root."""

    programs: Path
    folder: Path
    port: int
    user: str

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://prefect:secret@127.0.0.1:{self.port}/prefect"

    def run(self, program: str, *arguments: str, given: str | None = None) -> str:
        """Run one of PostgreSQL's programs, and return its standard output."""
        command: list[str] = [str(self.programs / program), *arguments]
        if os.geteuid() == 0:
            command = ["runuser", "-u", self.user, "--", *command]
        environment = {**os.environ, "PGHOST": str(self.folder), "PGPORT": str(self.port)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, input=given, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout


@contextlib.contextmanager
def temporary_postgres(folder: Path) -> Iterator[Postgres]:
    """Provide a cluster in a new `folder`, short enough for a socket path, with a role and a database `prefect`."""
    programs = find_postgres()
    if programs is None:
        raise FileNotFoundError("PostgreSQL is not installed: apt-get install postgresql")
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    postgres = Postgres(programs, folder, free_port(), user)
    folder.mkdir(parents=True)
    shutil.chown(folder, user)
    data = folder / "data"
    postgres.run("initdb", "--auth-local=trust", "--auth-host=scram-sha-256", "--no-sync", "-D", str(data))
    options = f"-p {postgres.port} -k {folder} -h 127.0.0.1"
    control = ["pg_ctl", "-D", str(data), "-w", "-s"]
    # Log to a file: a server that inherits the pipe would block `run`.
    postgres.run(*control, "-l", str(folder / "postgres.log"), "-o", options, "start")
    try:
        sql = "create role prefect login password 'secret'; create database prefect owner prefect;"
        postgres.run("psql", "-X", "-q", "-d", "postgres", given=sql.replace("; ", ";\n"))
        yield postgres
    finally:
        postgres.run(*control, "-m", "fast", "stop")


@contextlib.contextmanager
def prefect_server(folder: Path, environment: Mapping[str, str], start_seconds: float = 240) -> Iterator[str]:
    """Run a Prefect server with home and `server.log` in `folder`, and provide the URL of its API."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    home = {"PREFECT_HOME": str(folder / "home"), "PREFECT_UI_STATIC_DIRECTORY": str(folder / "ui")}
    command = ["server", "start", "--port", str(port)]
    with prefect_process(command, {**environment, **home}, folder / "server.log") as process:
        deadline = time.monotonic() + start_seconds
        while not is_healthy(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{(folder / 'server.log').read_text()[-3000:]}")
            time.sleep(0.5)
        yield api


@contextlib.contextmanager
def prefect_process(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Prefect command during the block, and end its whole process group afterwards."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for chosen in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, chosen)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)

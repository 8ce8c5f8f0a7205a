"""`musicgen-flows up`: a Prefect server, a worker for the pool `gpu`, and the deployments, on this machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from deployments.console import output, print_table
from deployments.environment import is_healthy
from deployments.options import UsageError, describe_unknown
from deployments.run import DEPLOYMENTS
from musicgen_core.errors import MusicgenError

ROOT = Path(__file__).resolve().parent.parent
POOL = "gpu"
PLACES = {"archives": "archives", "tokens": "tokens", "runs": "runs", "output": "music"}
STOP_SECONDS = 40  # a training that is stopped saves a checkpoint first


def up(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    api = f"http://{options.host}:{options.port}/api"
    os.environ["PREFECT_API_URL"] = api
    # A service manager's stop is a Ctrl-C; and a shell that starts us in the background has SIGINT ignored.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _interrupt)
    with contextlib.ExitStack() as stack:
        try:
            running = [stack.enter_context(_server(api, options.host, options.port))]
            _prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
            _prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
            places = _set_places(options)
            running.append(stack.enter_context(_worker(options.limit)))
            rows = [("Prefect UI", api.removesuffix("/api")), ("deployments", ", ".join(DEPLOYMENTS)), *places]
            print_table("Up", rows)
            output.print("Start a job with: musicgen-flows run tokenize-archives --watch. Ctrl-C stops everything.")
            _watch([process for process in running if process is not None])
        except KeyboardInterrupt:
            for stop in (signal.SIGTERM, signal.SIGINT):  # a second Ctrl-C would leave half of it running
                signal.signal(stop, signal.SIG_IGN)
            output.print("Stopping the worker and the server …")
    output.print("Stopped.")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("musicgen-flows up", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address that the server listens at (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=4200, help="port of the server (default 4200)")
    parser.add_argument("--limit", type=int, default=1, help="jobs that run at a time (default 1)")
    for name, folder in PLACES.items():
        parser.add_argument(
            f"--{name}", metavar="PATH", help=f"sets the variable musicgen_{name} (at first ./{folder})"
        )
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UsageError(describe_unknown(unknown))
    return options


def _interrupt(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _server(api: str, host: str, port: int) -> Iterator[subprocess.Popen[bytes] | None]:
    """A server of our own, or None where one is running already: that one is used and left running."""
    if is_healthy(api):
        output.print(f"Using the Prefect server that runs at {api}")
        yield None
        return
    output.print("Starting the Prefect server. Its first start makes a database and takes a while …")
    with _process("server", "start", "--host", host, "--port", str(port)) as process:
        deadline = time.monotonic() + 180
        while not is_healthy(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise MusicgenError(
                    f"the Prefect server did not start at {api}",
                    f"Run prefect server start --port {port} to see why; another program may hold the port: try --port",
                )
            time.sleep(0.5)
        yield process


@contextlib.contextmanager
def _worker(limit: int) -> Iterator[subprocess.Popen[bytes]]:
    output.print(f"Starting a worker of the pool {POOL} …")
    with _process("worker", "start", "--pool", POOL, "--type", "process", "--limit", str(limit)) as process:
        yield process


@contextlib.contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A part of Prefect in a session of its own, so that a Ctrl-C reaches us alone and we stop the parts in order."""
    process = subprocess.Popen([sys.executable, "-m", "prefect", *command], start_new_session=True, cwd=ROOT)
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a part and everything that it started: first asked, then made to."""
    for chosen, patience in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, chosen)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            process.poll()  # reaps it, so that the group can come to an end
            if not _group_lives(process.pid):
                return
            time.sleep(0.1)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _prefect(*command: str) -> None:
    """Run a command of Prefect, showing its output only if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise MusicgenError(
            f"prefect {' '.join(command)} failed ({' '.join(last)})", "Run it by hand to see all of its output"
        )


def _set_places(options: argparse.Namespace) -> list[tuple[str, str]]:
    """Set the variables that deployments take their places from, where an option says so or none is set yet."""
    from prefect.variables import Variable

    rows = []
    for name, folder in PLACES.items():
        variable, given = f"musicgen_{name}", getattr(options, name)
        value = Variable.get(variable)
        if given or value is None:
            value = given if given and "://" in given else str(Path(given or folder).expanduser().resolve())
            Variable.set(variable, value, overwrite=True)
        rows.append((variable, str(value)))
    return rows


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    raise MusicgenError("the Prefect server or its worker ended by itself", "Its last lines above say why")

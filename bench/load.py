"""Load test of a Prefect server with workers and empty task runs, on PostgreSQL or SQLite.

    python -m bench.load --database postgres [--workers 4] [--tasks 1000] [--limit-seconds 500]

Starts a server with API authentication and the project's automations, and real process workers, each of which runs a
flow with its share of the tasks. Meanwhile a client sends five requests per second. Reports task runs/s, latencies of
the client, complaints in the logs of server, workers and PostgreSQL, and lost task runs.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.servers import prefect_process, prefect_server, temporary_postgres

AUTH = "load:secret"
COMPLAINTS = (
    *("database is locked", "TimeoutError", "Traceback", "| ERROR", "| CRITICAL"),
    # PostgreSQL's, in its own log and in Prefect's; "database is locked" is SQLite's.
    *("ERROR:", "FATAL:", "PANIC:", "lock timeout", "could not serialize", "deadlock"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("postgres", "sqlite"), required=True)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--tasks", type=int, default=1000, help="task runs of all workers together")
    parser.add_argument("--logs", type=Path, help="a folder to keep the server's and the workers' logs in")
    parser.add_argument("--limit-seconds", type=float, default=500, help="stop waiting after that")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as made:
        folder = Path(made)
        folder.chmod(0o755)  # PostgreSQL runs as a user of its own
        with _database(given.database, folder) as settings, prefect_server(folder / "server", settings) as api:
            os.environ.update(PREFECT_API_URL=api, PREFECT_API_AUTH_STRING=AUTH, PREFECT_HOME=str(folder / "client"))
            for line in measure(folder, given.workers, given.tasks, given.limit_seconds):
                print(line, flush=True)
        for log in sorted(folder.rglob("*.log")):
            for complaint, lines in complaints(log.read_text(errors="replace")).items():
                print(f"{log.name}: {len(lines)} × {complaint!r}, first: {lines[0].strip()}")
            if given.logs is not None:
                given.logs.mkdir(parents=True, exist_ok=True)
                shutil.copy(log, given.logs)


@contextlib.contextmanager
def _database(kind: str, folder: Path) -> Iterator[dict[str, str]]:
    settings = {
        "PREFECT_SERVER_API_AUTH_STRING": AUTH,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_ENABLED": "true",
    }
    if kind == "sqlite":
        yield settings  # the server's default database, in its home
        return
    with temporary_postgres(folder / "postgres") as postgres:
        yield settings | {"PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.url}


def measure(folder: Path, workers: int, tasks: int, limit_seconds: float) -> Iterator[str]:
    """Run the load, and yield the lines of the report."""
    from prefect.client.orchestration import get_client
    from prefect.deployments import run_deployment

    from deployments.registering import ensure_automations, prefect, read_automations

    prefect("work-pool", "create", "load", "--type", "process")
    prefect("deploy", "bench/load_flow.py:load", "--name", "load", "--pool", "load")
    with get_client(sync_client=True) as client, contextlib.ExitStack() as stack:
        ensure_automations(client, read_automations())
        for number in range(workers):
            command = ["worker", "start", "--pool", "load", "--limit", "1", "--name", f"worker-{number}"]
            environment = {"PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
            stack.enter_context(prefect_process(command, environment, folder / f"worker-{number}.log"))
        waits = stack.enter_context(_asking())
        shares = [len(part) for part in np.array_split(np.arange(tasks), workers)]
        asked = time.monotonic()
        runs = [
            run_deployment("load/load", parameters={"tasks": share}, timeout=0, as_subflow=False).id  # type: ignore[union-attr]
            for share in shares
        ]
        deadline = asked + limit_seconds
        while time.monotonic() < deadline:
            states = [client.read_flow_run(run).state for run in runs]
            if all(state is not None and state.is_final() for state in states):
                break
            time.sleep(1)
        ended = time.monotonic()
        yield f"{workers} flow runs: {dict(_counted(states))}, {ended - asked:.0f} s from asking to the last end"
        found = _task_runs(client, runs, tasks, deadline)
        missing = tasks - _counted([run.state for run in found])["Completed"]
        yield f"task runs: {missing} of {tasks} not Completed on the server {time.monotonic() - ended:.0f} s later"
        yield _describe_span(found)
        yield _describe_waits(waits)


@contextlib.contextmanager
def _asking() -> Iterator[list[float]]:
    """Send five API requests per second; provide the latencies in s, with inf for errors."""
    waits: list[float] = []
    ended = threading.Event()
    token = base64.b64encode(AUTH.encode()).decode()
    client = httpx.Client(headers={"Authorization": f"Basic {token}"}, timeout=60)

    def ask() -> None:
        while not ended.wait(0.2):
            began = time.monotonic()
            try:
                answer = client.post(f"{os.environ['PREFECT_API_URL']}/task_runs/filter", json={"limit": 20})
                waits.append(time.monotonic() - began if answer.status_code == 200 else float("inf"))
            except httpx.HTTPError:
                waits.append(float("inf"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield waits
    finally:
        ended.set()
        thread.join()
        client.close()


def _counted(states: Sequence[Any]) -> Counter[str]:
    return Counter(state.name if state else "no state" for state in states)


def _task_runs(client: Any, runs: list[Any], expected: int, deadline: float) -> list[Any]:
    """Return the server's task runs, once all are stored: the server stores them asynchronously."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    mine = FlowRunFilter(id=FlowRunFilterId(any_=runs))
    while True:
        found: list[Any] = []
        while page := client.read_task_runs(flow_run_filter=mine, limit=200, offset=len(found)):
            found += page
        if _counted([run.state for run in found])["Completed"] == expected or time.monotonic() > deadline:
            return found
        time.sleep(2)


def _describe_span(found: list[Any]) -> str:
    starts = [run.start_time for run in found if run.start_time]
    ends = [run.end_time for run in found if run.end_time]
    seconds = (max(ends) - min(starts)).total_seconds()
    return f"first start to last end: {seconds:.0f} s, {len(ends) / seconds:.1f} task runs/s"


def _describe_waits(waits: list[float]) -> str:
    """Return a summary of the latencies in ms."""
    answered = np.array([wait for wait in waits if np.isfinite(wait)]) * 1000
    quantiles = ", ".join(f"{name} {np.quantile(answered, at):.0f}" for name, at in (("median", 0.5), ("95 %", 0.95)))
    return (
        f"{len(waits)} questions, {len(waits) - len(answered)} refused; ms: {quantiles}, longest {answered.max():.0f}"
    )


def complaints(log: str) -> dict[str, list[str]]:
    """Return the lines of a log by the entries of COMPLAINTS that they contain."""
    return {text: lines for text in COMPLAINTS if (lines := [line for line in log.splitlines() if text in line])}


if __name__ == "__main__":
    main()

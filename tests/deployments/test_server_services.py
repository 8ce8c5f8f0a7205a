"""Every background service of Prefect's server, with the pinned packages, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from bench.servers import find_postgres, prefect_server, temporary_postgres
from deployments.checks.services import check_services
from deployments.environment import DEFAULTS
from deployments.process_output import LOCKED, LOGGING, describe_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SERVICES = "PREFECT_SERVER_SERVICES_"
OFTEN = {
    **DEFAULTS,
    **LOGGING,
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
    "PREFECT_SERVER_LOGGING_LEVEL": "INFO",
    "PREFECT_LOGGING_ROOT_LEVEL": "INFO",  # Docket, which runs the services, says when each of them has run
    "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT2S",
    f"{SERVICES}SCHEDULER_LOOP_SECONDS": "3",
    f"{SERVICES}LATE_RUNS_LOOP_SECONDS": "3",
    f"{SERVICES}PAUSE_EXPIRATIONS_LOOP_SECONDS": "3",
    f"{SERVICES}CANCELLATION_CLEANUP_LOOP_SECONDS": "3",
    f"{SERVICES}CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "3",
    f"{SERVICES}FOREMAN_LOOP_SECONDS": "3",
    f"{SERVICES}FOREMAN_FALLBACK_HEARTBEAT_INTERVAL_SECONDS": "2",
    f"{SERVICES}FOREMAN_WORK_QUEUE_LAST_POLLED_TIMEOUT_SECONDS": "5",
    f"{SERVICES}FOREMAN_DEPLOYMENT_LAST_POLLED_TIMEOUT_SECONDS": "5",
    f"{SERVICES}REPOSSESSOR_LOOP_SECONDS": "3",
    f"{SERVICES}CLEANUP_RECONCILER_LOOP_SECONDS": "3",
    f"{SERVICES}DB_VACUUM_ENABLED": "events,flow_runs,orphans",
    f"{SERVICES}DB_VACUUM_LOOP_SECONDS": "5",
    f"{SERVICES}DB_VACUUM_ORPHAN_CLEANUP_LOOP_SECONDS": "5",
    f"{SERVICES}EVENT_LOGGER_ENABLED": "true",
}


@dataclass(frozen=True)
class Server:
    api: str
    is_sqlite: bool
    log: Path
    execute: Callable[[str], object]  # SQL, on its database

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        for _ in range(60):
            answer = httpx.request(method, f"{self.api}{path}", json=body, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(1)  # SQLite is locked; Prefect's own client tries again, too
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def create(self, path: str, **body: Any) -> str:
        return str(self.ask("POST", path, body)["id"])

    def create_run(self, flow: str, state: str, *, details: dict[str, Any] | None = None, **body: Any) -> str:
        created = {"type": state, "name": state.capitalize(), "state_details": details or {}}
        return self.create("/flow_runs/", flow_id=flow, state=created, **body)

    def create_task_run(self, run: str, state: str) -> str:
        created = {"type": state, "name": state.capitalize()}
        return self.create("/task_runs/", flow_run_id=run, task_key="task", dynamic_key=str(uuid4()), state=created)

    def send(self, event: str, occurred: datetime) -> None:
        body = {"id": str(uuid4()), "event": event, "occurred": occurred.isoformat()}
        self.ask("POST", "/events", [{**body, "resource": {"prefect.resource.id": event}}])

    def state(self, kind: str, run: str) -> str:
        return str(self.ask("GET", f"/{kind}/{run}")["state"]["type"])

    def exists(self, path: str) -> bool:
        return httpx.get(f"{self.api}{path}", timeout=60).status_code == 200


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    folder = tmp_path_factory.mktemp(request.param)
    with {"sqlite": sqlite, "postgresql": postgresql}[request.param](folder) as (database, execute):
        settings = {**OFTEN, "PREFECT_SERVER_DATABASE_CONNECTION_URL": database}
        with prefect_server(folder, settings) as api, temporary_settings({PREFECT_API_URL: api}):
            yield Server(api, request.param == "sqlite", folder / "server.log", execute)


@contextmanager
def sqlite(folder: Path) -> Iterator[tuple[str, Callable[[str], object]]]:
    def execute(sql: str) -> None:
        with sqlite3.connect(folder / "prefect.db", timeout=60) as connection:
            connection.execute(sql)

    yield f"sqlite+aiosqlite:///{folder / 'prefect.db'}", execute


@contextmanager
def postgresql(_: Path) -> Iterator[tuple[str, Callable[[str], object]]]:
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    cluster = Path("/tmp") / f"postgres-{uuid4().hex[:8]}"  # where PostgreSQL's own user may go, and short
    try:
        with temporary_postgres(cluster) as postgres:
            yield postgres.url, lambda sql: postgres.run("psql", "-X", "-q", "-d", "prefect", "-c", sql)
    finally:
        shutil.rmtree(cluster, ignore_errors=True)


def test_the_doctor_tries_each_service_and_leaves_nothing(server: Server) -> None:
    kinds = ("flows", "deployments", "flow_runs", "task_runs", "automations")

    def there() -> dict[str, int]:
        return {kind: int(server.ask("POST", f"/{kind}/count", {})) for kind in kinds}

    before = there()
    [found] = check_services()
    assert found.level == "ok", found
    assert "scheduler" in found.found and "automations on silence" in found.found
    assert there() == before


def test_each_service_has_its_effect(server: Server) -> None:
    effects = {**cancelled_and_paused(server), **silent(server), **vacuumed(server), **leased(server)}
    deadline = time.monotonic() + 240  # a lease lasts a minute at least
    while waiting := [name for name, has_come in effects.items() if not has_come()]:
        assert time.monotonic() < deadline, (waiting, server.log.read_text()[-3000:])
        time.sleep(1)


def cancelled_and_paused(server: Server) -> dict[str, Callable[[], bool]]:
    flow = server.create("/flows/", name="cancelled")
    cancelled, cancelling = server.create_run(flow, "RUNNING"), server.create_run(flow, "CANCELLING")
    task = server.create_task_run(cancelled, "RUNNING")
    subflow = server.create_run(flow, "RUNNING", parent_task_run_id=task)
    server.ask("POST", f"/flow_runs/{cancelled}/set_state", {"state": {"type": "CANCELLED"}, "force": True})
    expired = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
    paused = server.create_run(flow, "PAUSED", details={"pause_timeout": expired})
    return {
        "a cancelled run's task is cancelled": lambda: server.state("task_runs", task) == "CANCELLED",
        "a cancelled run's subflow is cancelled": lambda: server.state("flow_runs", subflow) == "CANCELLED",
        "a run that doesn't end is cancelled": lambda: server.state("flow_runs", cancelling) == "CANCELLED",
        "a pause that expired has failed": lambda: server.state("flow_runs", paused) == "FAILED",
    }


def silent(server: Server) -> dict[str, Callable[[], bool]]:
    """A worker that polls once, for a queue and a deployment, and is gone."""
    flow = server.create("/flows/", name="silent")
    server.create("/work_pools/", name="silent", type="process")
    deployment = server.create("/deployments/", name="silent", flow_id=flow, work_pool_name="silent")
    pool = "/work_pools/silent"
    server.ask("POST", f"{pool}/workers/heartbeat", {"name": "worker", "heartbeat_interval_seconds": 1})
    server.ask("POST", f"{pool}/get_scheduled_flow_runs", {"work_queue_names": ["default"]})
    server.ask("POST", "/deployments/get_scheduled_flow_runs", {"deployment_ids": [deployment]})
    return {
        "a silent worker is offline": lambda: (
            [worker["status"] for worker in server.ask("POST", f"{pool}/workers/filter", {})] == ["OFFLINE"]
        ),
        "its pool is not ready": lambda: server.ask("GET", pool)["status"] == "NOT_READY",
        "its queue is not ready": lambda: server.ask("GET", f"{pool}/queues/default")["status"] == "NOT_READY",
        "its deployment is not ready": lambda: server.ask("GET", f"/deployments/{deployment}")["status"] == "NOT_READY",
    }


def vacuumed(server: Server) -> dict[str, Callable[[], bool]]:
    flow, gone = server.create("/flows/", name="old"), str(uuid4())
    run = server.create_run(flow, "COMPLETED", name="old")
    server.execute("update flow_run set end_time = '2020-01-01 00:00:00.000000' where name = 'old'")
    server.send("old", datetime.now(UTC) - timedelta(days=30))
    line = {"name": "log", "level": 20, "message": "line", "timestamp": datetime.now(UTC).isoformat()}
    server.ask("POST", "/logs/", [{**line, "flow_run_id": gone}])
    artifact = server.create("/artifacts/", key="orphan", type="text", data="", flow_run_id=gone)
    return {
        "an old run is deleted": lambda: not server.exists(f"/flow_runs/{run}"),
        "an old event is deleted": lambda: "old events and" in server.log.read_text(),
        "an orphaned log is deleted": lambda: "orphaned logs." in server.log.read_text(),
        "an orphaned artifact is deleted": lambda: not server.exists(f"/artifacts/{artifact}"),
        "its collection is deleted, too": lambda: not server.exists("/artifacts/orphan/latest"),
    }


def leased(server: Server) -> dict[str, Callable[[], bool]]:
    limit = server.create("/v2/concurrency_limits/", name="leased", limit=1)
    lease = {"slots": 1, "names": ["leased"], "lease_duration": 60}
    server.ask("POST", "/v2/concurrency_limits/increment-with-lease", lease)
    assert server.ask("GET", f"/v2/concurrency_limits/{limit}")["active_slots"] == 1
    return {
        "a lease that expired is returned": lambda: (
            server.ask("GET", f"/v2/concurrency_limits/{limit}")["active_slots"] == 0
        )
    }


def test_events_are_streamed_to_who_listens(server: Server) -> None:
    from prefect.events.clients import get_events_subscriber
    from prefect.events.filters import EventFilter, EventNameFilter

    async def listen() -> str:
        wanted = EventFilter(event=EventNameFilter(name=["streamed"]))
        async with get_events_subscriber(filter=wanted) as subscriber:
            server.send("streamed", datetime.now(UTC))
            return (await asyncio.wait_for(anext(subscriber), 120)).event

    assert asyncio.run(listen()) == "streamed"


def test_each_service_has_run_and_none_has_logged_an_error(server: Server) -> None:
    import prefect.server.api.background_workers  # noqa: F401  (which has all of them registered)
    from prefect.server.services.perpetual_services import get_perpetual_services

    lines = server.log.read_text().splitlines()
    records = [json.loads(line) for line in lines if line.startswith('{"')]
    logged = [(record["levelno"], describe_record(json.dumps(record))) for record in records]
    names = {service.function.__name__ for service in get_perpetual_services()} - {"send_telemetry_heartbeat"}
    assert len(names) >= 12
    done = " ".join(text for _, text in logged if text.startswith("↫"))
    assert [name for name in names if f"] {name}()" not in done] == []
    errors = [text for level, text in logged if level >= logging.ERROR]
    if server.is_sqlite:
        errors = [text for text in errors if LOCKED not in text]  # Prefect tries again
    assert errors == []
    assert not [line for line in lines if line.startswith("Traceback")]

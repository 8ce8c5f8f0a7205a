"""Check the background services of the Prefect server: each gets a small job, and its effect is awaited.

The health check of a server succeeds even if its services have died: only their effects show that they work. Some
effects would take minutes, or notify people of a failure: expired pauses, and workers that went silent. Those are
checked on existing runs and workers. Leases of concurrency limits are left out: this project uses none, and the
shortest lasts a minute.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from deployments.checks.finding import Finding
from deployments.checks.service_trial import Service, Trial, trial
from deployments.registering import DEPLOYMENTS
from deployments.weekly import coming_runs
from musicgen_core.language import message
from musicgen_core.wording import joined

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

SECONDS = 60.0
"""The slowest services look every 20 s; a proactive automation waits for 10 s."""

POLL_SECONDS = 1.0
OVERDUE = timedelta(minutes=5)
"""Time within which the server should notice something that is due, such as the end of a pause."""

NAME = message("services")
FIX = message(
    "Restart the server. If that changes nothing, its log names the error: the terminal of uv run musicgen-flows up, "
    "or journalctl -u musicgen-server. uv sync installs the packages that it is known to work with"
)


def check_services() -> list[Finding]:
    """Give each service of the configured server a job. Return the ones that work, and a problem for each other one."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        settings = client.request("GET", "/admin/settings").json()["server"]["services"]
        with trial(client) as given:
            services = given.services()
            tried = [service for service in services if settings[service.setting]["enabled"]]
            dead = _await_effects(given, tried)
        return [
            *_describe([service for service in tried if service not in dead], dead),
            *(_switched_off(service) for service in services if service not in tried),
            *_check_schedules(client),
            *_check_workers(client),
            *_check_pauses(client),
        ]


def _await_effects(given: Trial, services: Sequence[Service]) -> list[Service]:
    """Wait for the effects and return the services that had none."""
    waiting, deadline = list(services), time.monotonic() + SECONDS
    while waiting and time.monotonic() < deadline:
        given.send()
        time.sleep(POLL_SECONDS)
        waiting = [service for service in waiting if not service.has_worked()]
    return waiting


def _describe(working: Sequence[Service], dead: Sequence[Service]) -> Iterator[Finding]:
    if working:
        found = message("the server's are at work: {names}", names=joined(service.name for service in working))
        yield Finding(NAME, "ok", found)
    for service in dead:
        found = message(
            "{service}: did nothing within {seconds:g} seconds; {without}",
            service=service.name,
            seconds=SECONDS,
            without=service.without,
        )
        yield Finding(NAME, "problem", found, FIX)


def _switched_off(service: Service) -> Finding:
    setting = f"PREFECT_SERVER_SERVICES_{service.setting.upper()}_ENABLED"
    found = message("{service}: switched off; {without}", service=service.name, without=service.without)
    return Finding(NAME, "warning", found, message("Start the server with {setting}=true", setting=setting))


def _check_schedules(client: SyncPrefectClient) -> Iterator[Finding]:
    """Check that this project's active schedules have an upcoming run, unless they were switched on just now."""
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    endless = CronSchedule | IntervalSchedule
    for deployment in client.read_deployments(limit=200):
        for schedule in [] if deployment.paused or deployment.name not in DEPLOYMENTS else deployment.schedules:
            on = schedule.active and isinstance(schedule.schedule, endless) and _is_overdue(schedule.updated)
            if on and not coming_runs(client, deployment.id, schedule.id):
                found = message(
                    "scheduler: the schedule {schedule} of {deployment} has no run to come",
                    schedule=schedule.slug or schedule.id,
                    deployment=deployment.name,
                )
                yield Finding(NAME, "problem", found, FIX)


def _check_workers(client: SyncPrefectClient) -> Iterator[Finding]:
    """Check the service that notices silent workers: a worker that it has overlooked is still shown as online."""
    from prefect.client.schemas.objects import WorkerStatus

    silent = [
        worker.name
        for pool in client.read_work_pools()
        for worker in client.read_workers_for_work_pool(pool.name)
        if worker.status == WorkerStatus.ONLINE and _is_overdue(worker.last_heartbeat_time)
    ]
    if silent:
        found = message("foreman: workers that are silent count as online: {names}", names=", ".join(silent))
        yield Finding(NAME, "problem", found, FIX)


def _check_pauses(client: SyncPrefectClient) -> Iterator[Finding]:
    from prefect.client.schemas.filters import FlowRunFilter

    paused = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    )
    expired = [run.name for run in paused if run.state and _is_overdue(run.state.state_details.pause_timeout)]
    if expired:
        found = message("pause expirations: runs stay paused whose time is over: {names}", names=", ".join(expired))
        yield Finding(NAME, "problem", found, FIX)


def _is_overdue(moment: datetime | None) -> bool:
    return moment is not None and moment < datetime.now(UTC) - OVERDUE

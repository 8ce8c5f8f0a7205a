"""Check the background services of the Prefect server: each gets a small job, and its effect is awaited.

The health check of a server succeeds even if its services have died: only their effects show that they work. Some
effects would take minutes, or notify people of a failure: expired pauses, and workers that went silent. Those are
checked on existing runs and workers. Leases of concurrency limits are left out: this project uses none, and the
shortest lasts a minute.

The jobs are those of a flow whose runs have no work pool, so that no worker takes them, and two automations that do
nothing. All of them are deleted again. The server keeps the events for its usual retention time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID, uuid4

from deployments.checks.finding import Finding
from deployments.registering import DEPLOYMENTS
from deployments.weekly import coming_runs
from musicgen_core.language import message
from musicgen_core.wording import joined

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PREFIX = "musicgen-flows-doctor-"
LEFT = timedelta(hours=1)
"""Age at which the objects of a killed doctor are deleted by another one."""

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


@dataclass(frozen=True)
class Service:
    """A background service of the server.

    Attributes:
        setting: its name in Prefect's settings, `PREFECT_SERVER_SERVICES_…_ENABLED` in capitals.
        without: consequence if the service doesn't work.
        has_worked: returns whether its effect is visible.
    """

    name: str
    setting: str
    without: str
    has_worked: Callable[[], bool]


@dataclass(frozen=True)
class Trial:
    """Objects on the server that its services work on.

    Attributes:
        name: name of the flow, of the automations and of the event that they wait for.
        late: flow run that is overdue.
        recorded, child: task runs of a cancelled run. The server creates the first from an event.
        reactive, proactive: the two automations.
    """

    client: SyncPrefectClient
    name: str
    deployment: UUID
    late: UUID
    recorded: UUID
    child: UUID
    reactive: UUID
    proactive: UUID

    def services(self) -> list[Service]:
        restarts = message("crashed runs stay as they are")
        return [
            Service(
                message("scheduler"),
                "scheduler",
                message("no schedule starts a run, the weekly retraining included"),
                self._planned,
            ),
            Service(
                message("late runs"),
                "late_runs",
                message("runs that no worker takes are not shown as late"),
                self._is_late,
            ),
            Service(
                message("cancellation cleanup"),
                "cancellation_cleanup",
                message("task runs of cancelled runs stay Running"),
                lambda: self._task_state(self.child) == "CANCELLED",
            ),
            Service(
                message("task run recorder"),
                "task_run_recorder",
                message("the page of a run doesn't show its tasks"),
                lambda: self._task_state(self.recorded) is not None,
            ),
            Service(
                message("event log"),
                "event_persister",
                message(
                    "events are lost, and the actions of automations can't be seen: if these are listed, too, "
                    "{without}",
                    without=restarts,
                ),
                lambda: self._has_event(self.name, self.name),
            ),
            Service(message("automations on events"), "triggers", restarts, lambda: self._has_acted(self.reactive)),
            Service(message("automations on silence"), "triggers", restarts, lambda: self._has_acted(self.proactive)),
        ]

    def send(self) -> None:
        """Send the event that the automations wait for. Call it repeatedly: the server may not have loaded them yet."""
        _send(self.client, self.name, {"prefect.resource.id": self.name})

    def _planned(self) -> bool:
        return bool(coming_runs(self.client, self.deployment))

    def _is_late(self) -> bool:
        state = self.client.read_flow_run(self.late).state
        return state is not None and state.name == "Late"

    def _task_state(self, task_run: UUID) -> str | None:
        from prefect.exceptions import ObjectNotFound

        try:
            state = self.client.read_task_run(task_run).state
        except ObjectNotFound:
            return None
        return None if state is None else state.type.value

    def _has_acted(self, automation: UUID) -> bool:
        return self._has_event("prefect.automation.action.executed", f"prefect.automation.{automation}")

    def _has_event(self, name: str, resource: str) -> bool:
        from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

        wanted = EventFilter(event=EventNameFilter(name=[name]), resource=EventResourceFilter(id=[resource]))
        return bool(self.client.read_events(wanted, limit=1).events)


@contextlib.contextmanager
def trial(client: SyncPrefectClient) -> Iterator[Trial]:
    """Create the objects that the services work on. Delete them at the end, and those that a killed doctor left."""
    _delete_left(client)
    name = f"{PREFIX}{uuid4()}"
    flow = client.create_flow_from_name(name)
    automations: list[UUID] = []
    try:
        for posture in ("Reactive", "Proactive"):
            automations.append(_create_automation(client, name, posture))
        run = {"name": "doctor", "flow_id": str(flow)}
        overdue = {"scheduled_time": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}
        cancelled = _create(client, "/flow_runs/", "CANCELLED", run)
        task = {"name": "doctor", "flow_run_id": str(cancelled), "task_key": "child", "dynamic_key": "0"}
        yield Trial(
            client=client,
            name=name,
            deployment=_create_deployment(client, flow),
            late=_create(client, "/flow_runs/", "SCHEDULED", run, overdue),
            recorded=_report_task_run(client, cancelled),
            child=_create(client, "/task_runs/", "RUNNING", task),
            reactive=automations[0],
            proactive=automations[1],
        )
    finally:
        for automation in automations:
            client.delete_automation(automation)
        client.delete_flow(flow)  # with its deployment and all its runs


def _delete_left(client: SyncPrefectClient) -> None:
    from prefect.client.schemas.filters import FlowFilter

    old = datetime.now(UTC) - LEFT
    for flow in client.read_flows(flow_filter=FlowFilter.model_validate({"name": {"like_": PREFIX}})):
        if flow.created is not None and flow.created < old:
            for automation in client.read_automations_by_name(flow.name):
                client.delete_automation(automation.id)
            client.delete_flow(flow.id)


def _create_automation(client: SyncPrefectClient, name: str, posture: str) -> UUID:
    """Create an automation. `Reactive` acts on the event, `Proactive` if nothing follows it within 10 seconds."""
    from prefect.events.schemas.automations import AutomationCore

    event = (
        {"expect": [name]} if posture == "Reactive" else {"after": [name], "expect": [f"{name}.never"], "within": 10}
    )
    trigger = {"type": "event", "posture": posture, "match": {"prefect.resource.id": name}, "threshold": 1, **event}
    automation = {"name": name, "trigger": trigger, "actions": [{"type": "do-nothing"}]}
    return client.create_automation(AutomationCore.model_validate(automation))


def _create_deployment(client: SyncPrefectClient, flow: UUID) -> UUID:
    """Create a deployment without a work pool, with a schedule whose first run is a month away."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import IntervalSchedule

    month = timedelta(days=30)
    schedule = IntervalSchedule(interval=month, anchor_date=datetime.now(UTC) + month)
    return client.create_deployment(
        flow, "doctor", schedules=[DeploymentScheduleCreate(schedule=schedule, active=True)]
    )


def _create(
    client: SyncPrefectClient,
    path: Literal["/flow_runs/", "/task_runs/"],
    state: str,
    body: dict[str, str],
    details: dict[str, str] | None = None,
) -> UUID:
    """Create a flow run or task run in this state, as if a process had reported it."""
    created = {"type": state, "name": state.capitalize(), "state_details": details or {}}
    return UUID(client.request("POST", path, json={**body, "state": created}).json()["id"])


def _report_task_run(client: SyncPrefectClient, run: UUID) -> UUID:
    """Report a task run as a flow's process does: by an event alone."""
    task_run = uuid4()
    _send(
        client,
        "prefect.task-run.Running",
        {"prefect.resource.id": f"prefect.task-run.{task_run}", "prefect.orchestration": "client"},
        related=[{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
        payload={
            "intended": {"from": None, "to": "RUNNING"},
            "initial_state": None,
            "validated_state": {"type": "RUNNING", "name": "Running"},
            "task_run": {"name": "doctor", "task_key": "recorded", "dynamic_key": "0"},
        },
    )
    return task_run


def _send(client: SyncPrefectClient, event: str, resource: dict[str, str], **more: Any) -> None:
    body = {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": event, "resource": resource}
    client.request("POST", "/events", json=[body | more])


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

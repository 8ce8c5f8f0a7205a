"""The weekly retraining: a schedule of train-lora. prefect.yaml creates it inactive; people change it afterwards."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from deployments.inputs import arranged
from musicgen_core.errors import MusicgenError
from musicgen_core.language import message
from musicgen_core.wording import dated
from tasks.forms import beside_each_other, in_groups

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule, FlowRun
    from prefect.client.schemas.responses import DeploymentResponse

DEPLOYMENT = "train-lora"
SLUG = "weekly-retrain"
_DAYS = (
    message("Monday"),
    message("Tuesday"),
    message("Wednesday"),
    message("Thursday"),
    message("Friday"),
    message("Saturday"),
    message("Sunday"),
)
SCHEDULER_SECONDS = 75.0  # the scheduler runs once a minute


def set_weekly(active: bool, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Switch the schedule on or off, add or replace parameters, and return all of them.

    Parameters have their own names, without their groups.

    Raises:
        UsageError: train-lora takes no such parameters; nothing is changed.
        MusicgenError: the schedule is not on this server.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    with get_client(sync_client=True) as client:
        deployment = _find_deployment(client)
        schedule = _find_schedule(deployment)
        if deployment is None or schedule is None:
            raise MusicgenError(
                message(
                    "the deployment {deployment} with its schedule {slug} is not on this server",
                    deployment=DEPLOYMENT,
                    slug=SLUG,
                ),
                message("Register it first: uv run musicgen-flows up"),
            )
        schema = deployment.parameter_openapi_schema or {}
        arranged(given, deployment)  # the server would find problems only when the schedule's next run is due
        # All parameters each time: an update without them deletes them (PrefectHQ/prefect#17982).
        parameters = beside_each_other(schedule.parameters, schema) | beside_each_other(given, schema)
        client.update_deployment_schedule(
            deployment.id, schedule.id, active=active, parameters=in_groups(parameters, schema)
        )
        # Updates the deployment, too: the scheduler looks at changed deployments every 5 seconds, at others every 60.
        client.update_deployment(deployment.id, DeploymentUpdate(description=deployment.description))
        return parameters


def describe_next(patience_s: float) -> str:
    """Return the start of the next retraining, or why the server will not start one.

    Args:
        patience_s: how long to wait for the scheduler.
    """
    from prefect.client.orchestration import get_client

    deadline = time.monotonic() + patience_s
    with get_client(sync_client=True) as client:
        deployment = _find_deployment(client)
        schedule = _find_schedule(deployment)
        if deployment is None or schedule is None or not schedule.active:
            return message("none (uv run musicgen-flows run {deployment} --weekly on)", deployment=DEPLOYMENT)
        if deployment.paused:
            return message(
                "none: the deployment {deployment} is paused. Resume it on its page in the UI", deployment=DEPLOYMENT
            )
        while not (runs := coming_runs(client, deployment.id, schedule.id)):
            if time.monotonic() > deadline:
                return message(
                    "not scheduled by the server yet. To see whether its scheduler works: uv run musicgen-flows doctor"
                )
            time.sleep(1)
        start = runs[0].expected_start_time
        assert start is not None, "of a run that the scheduler has made"
        return message("{day} {time}", day=_DAYS[start.astimezone().weekday()], time=dated(start))


def coming_page() -> str | None:
    """Return the UI's page of upcoming runs. None if the server has no UI or no such deployment."""
    from prefect.client.orchestration import get_client
    from prefect.utilities.urls import url_for

    with get_client(sync_client=True) as client:
        deployment = _find_deployment(client)
    page = deployment and url_for("deployment", obj_id=deployment.id)
    return f"{page}?tab=Upcoming" if page else None


def coming_runs(client: SyncPrefectClient, deployment: UUID, schedule: UUID | None = None) -> list[FlowRun]:
    """Return a deployment's runs that the scheduler has created, for one schedule or all, next one first."""
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.client.schemas.sorting import FlowRunSort

    planned = {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"after_": datetime.now(UTC)}}
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(planned),
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment]}}),
        sort=FlowRunSort.EXPECTED_START_TIME_ASC,
    )
    return [
        run for run in runs if run.auto_scheduled and schedule in (None, run.created_by.id if run.created_by else None)
    ]


def _find_schedule(deployment: DeploymentResponse | None) -> DeploymentSchedule | None:
    schedules = deployment.schedules if deployment else []
    return next((schedule for schedule in schedules if schedule.slug == SLUG), None)


def _find_deployment(client: SyncPrefectClient) -> DeploymentResponse | None:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(f"{DEPLOYMENT}/{DEPLOYMENT}")
    except ObjectNotFound:
        return None

"""Restart crashed training runs that the automation missed, on the server of `up`.

The event of a crash can get lost or delayed. With SQLite the server drops an event after four failed attempts
("database is locked", mostly just after its start). If a run crashes less than five minutes after its start and the
server was restarted in between, Prefect's ordering of events delays the event by fifteen minutes.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from deployments.registering import read_automations

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

RESTARTS = "musicgen: crashed trainings start again"
PATIENCE = timedelta(seconds=60)  # the automation acts first
HORIZON = timedelta(hours=1)  # restarting runs that crashed before that would surprise people


def restart_missed(client: SyncPrefectClient, patience: timedelta = PATIENCE) -> list[str]:
    """Reschedule runs that the automation should have restarted, and return their names.

    Nothing is restarted if the automation is paused or does not exist.

    Args:
        patience: time since the crash during which a run is left to the automation.
    """
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.states import AwaitingRetry

    if not any(automation.enabled for automation in client.read_automations_by_name(RESTARTS)):
        return []
    definition = next(automation for automation in read_automations() if automation["name"] == RESTARTS)
    trigger, action = definition["trigger"], definition["actions"][0]
    now = datetime.now(UTC)
    crashed = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(
            {
                "state": {"type": {"any_": ["CRASHED"]}},
                "end_time": {"after_": now - HORIZON, "before_": now - patience},
            }
        ),
        deployment_filter=DeploymentFilter.model_validate(
            {"name": {"any_": trigger["match_related"]["prefect.resource.name"]}}
        ),
    )
    missed = [run for run in crashed if str(run.run_count) in trigger["match"]["prefect.run-count"]]
    for run in missed:
        client.set_flow_run_state(run.id, AwaitingRetry(message=action["message"]))
    return [run.name for run in missed]

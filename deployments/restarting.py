"""A net under the automation that starts crashed trainings again: `up` looks after its own server's.

An event of a crash can get lost: with SQLite the server gives one up that it couldn't handle in four attempts at once
("database is locked", mostly just after its start), and one of a run that had started less than five minutes before is
held back for fifteen minutes by a server that was started again in between (Prefect's order of events).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from deployments.registering import read_automations

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

RESTARTS = "musicgen: crashed trainings start again"
PATIENCE = timedelta(seconds=60)  # it is the automation's turn first
HORIZON = timedelta(hours=1)  # what crashed before that is no surprise to anyone any more


def restart_missed(client: SyncPrefectClient, patience: timedelta = PATIENCE) -> list[str]:
    """Schedule runs again that the automation should have → their names. None where it is paused or not there.

    Args:
        patience: how long a run is left to the automation.
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

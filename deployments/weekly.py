"""The weekly retraining: a schedule of train-lora, created inactive by prefect.yaml, and a person's from then on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deployments.run_parameters import check
from musicgen_core.errors import MusicgenError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

DEPLOYMENT = "train-lora"
SLUG = "weekly-retrain"


def set_weekly(active: bool, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Switch it on or off, and put these parameters beside those that it has, or in their place → all of them.

    Raises:
        UsageError: train-lora takes no such parameters; nothing is changed.
        MusicgenError: the schedule is not on this server.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        deployment = _find_deployment(client)
        schedules = deployment.schedules if deployment else []
        schedule = next((found for found in schedules if found.slug == SLUG), None)
        if deployment is None or schedule is None:
            raise MusicgenError(
                f"the deployment {DEPLOYMENT} with its schedule {SLUG} is not on this server",
                "Start musicgen-flows up first",
            )
        check(given or {}, deployment)  # the server would find it only when the schedule's next run is due
        # All of them each time: an update that leaves them out deletes them (PrefectHQ/prefect#17982).
        parameters = {**schedule.parameters, **(given or {})}
        client.update_deployment_schedule(deployment.id, schedule.id, active=active, parameters=parameters)
        return parameters


def _find_deployment(client: SyncPrefectClient) -> DeploymentResponse | None:
    from prefect.exceptions import ObjectNotFound

    try:
        return client.read_deployment_by_name(f"{DEPLOYMENT}/{DEPLOYMENT}")
    except ObjectNotFound:
        return None

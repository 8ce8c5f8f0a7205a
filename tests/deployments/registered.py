"""Deployments of a registered server, and the runs that it offers a worker."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient

from deployments.registering import POOL


def deployed(client: SyncPrefectClient, name: str) -> Any:
    return client.read_deployment_by_name(f"{name}/{name}")


def offered(client: SyncPrefectClient) -> list[UUID]:
    """Return the runs that a worker of the tokenizing queue gets when it polls."""
    asked = {"work_queue_names": ["tokenizing"], "scheduled_before": str(datetime.now(UTC) + timedelta(seconds=10))}
    answer = client.request("POST", f"/work_pools/{POOL}/get_scheduled_flow_runs", json=asked)
    return [UUID(found["flow_run"]["id"]) for found in answer.json()]

"""A running `musicgen-flows up` for tests in a browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, TaskRun

PATIENCE_SECONDS = 400
"""For a run to come so far: its process starts, imports torch, and shares two cores with a browser."""
DEBUG = {"model": "debug", "device": "cpu"}


@dataclass(frozen=True)
class Site:
    """A running `up`: its URL, its directories, and a client of its server."""

    url: str
    folder: Path
    client: SyncPrefectClient

    def start(self, deployment: str, **parameters: Any) -> UUID:
        """Start a run as a script would, and return its id."""
        found = self.client.read_deployment_by_name(f"{deployment}/{deployment}")
        return self.client.create_flow_run_from_deployment(found.id, parameters=DEBUG | parameters).id

    def run(self, run: UUID) -> FlowRun:
        return self.client.read_flow_run(run)

    def wait_until(self, holds: Callable[[], bool], what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain: {what()}; {(self.folder / 'up.log').read_text()}"
            time.sleep(0.2)

    def wait_for(self, run: UUID, state: str) -> str:
        """Wait for a state of a run, and return its message."""
        self.wait_until(lambda: self.run(run).state_name == state, lambda: self.run(run).state)
        return str(self.run(run).state.message)

    def task_runs(self, run: UUID) -> list[TaskRun]:
        this_run, found = FlowRunFilter(id=FlowRunFilterId(any_=[run])), []
        while page := self.client.read_task_runs(flow_run_filter=this_run, limit=200, offset=len(found)):
            found += page
        return found

    def subflows(self, run: UUID) -> list[FlowRun]:
        of_run = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
        return self.client.read_flow_runs(flow_run_filter=of_run)

    def is_put_away(self, run: UUID) -> bool:
        """Return whether the run's worker has cleaned up an attempt of it."""
        event = {
            "event": {"name": ["prefect.worker.executed-flow-run"]},
            "related": {"id": [f"prefect.flow-run.{run}"]},
        }
        found = self.client.request("POST", "/events/filter", json={"filter": event}).json()
        return bool(found["events"])

    def process(self, run: UUID) -> psutil.Process:
        """Return the process of a flow run itself: neither its worker nor a child."""
        found = [process for process in psutil.process_iter() if _flow_run(process) == str(run)]
        return min(found, key=psutil.Process.create_time)


def _flow_run(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("PREFECT__FLOW_RUN_ID")
    except psutil.Error:
        return None

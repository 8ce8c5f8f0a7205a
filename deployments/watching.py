"""Follow a deployment's run in the terminal: its states, and the progress of all of its parts."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import State
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, FlowRunFilterParentFlowRunId, WorkPoolFilter
from prefect.client.schemas.objects import Artifact, FlowRun
from prefect.client.schemas.sorting import ArtifactSort, FlowRunSort

from deployments.activity import Activity, working
from deployments.checks.server import check_workers
from deployments.console import print_text
from deployments.registering import POOL
from musicgen_core.escaping import plain_text
from musicgen_core.language import message, say, stored_message, translated
from musicgen_core.wording import named
from tasks.forms import with_fields
from tasks.progress import Update

WATCH_SECONDS = 2.0
PATIENCE = timedelta(seconds=5)
"""Time that a run is due before the reason of its wait is shown."""
DOING = {
    "SCHEDULED": message("waiting for a worker, which looks for runs every few seconds"),
    "PENDING": message("the worker starts a process for it"),
    "RUNNING": message("running; its process loads what it needs"),
    "CANCELLING": message("being cancelled; a training run saves first"),
}
"""Stage shown in each type of state that is not final, until the run reports progress."""
_STATES = {
    "Scheduled": message("Scheduled"),
    "Late": message("Late"),
    "AwaitingRetry": message("AwaitingRetry"),
    "AwaitingConcurrencySlot": message("AwaitingConcurrencySlot"),
    "Pending": message("Pending"),
    "Running": message("Running"),
    "Retrying": message("Retrying"),
    "Paused": message("Paused"),
    "Cancelling": message("Cancelling"),
    "Cancelled": message("Cancelled"),
    "Completed": message("Completed"),
    "Failed": message("Failed"),
    "Crashed": message("Crashed"),
    "Suspended": message("Suspended"),
    "TimedOut": message("TimedOut"),
    "Skipped": message("Skipped"),
    "WaitingForDisk": message("WaitingForDisk"),
}
"""Names of states: Prefect's, and those of `flows/train_lora.py` and `tasks/runs.py`"""
_ENDINGS = (
    message("{failed} of {archives} failed: {reasons}"),
    message("{ending}: {steps}, {best} {loss:.4f} in epoch {epoch}, in {run_dir}"),
    message("{ending}: {steps}, in {run_dir}"),
)
"""Messages of final states that have few letters of their own"""
AUTOMATIC = (
    message("No heartbeat for a while. The process or its machine is gone."),
    message("Crashed; restarts and resumes from its newest checkpoint, or with the remaining archives."),
    message("Its worker was stopped while it started; another one takes it."),
)
"""Messages of states that automations.yaml sets"""


def watch_run(client: SyncPrefectClient, run: UUID, form: Mapping[str, Any] | None = None) -> State:
    """Show a run's states and progress until it ends. Return its final state, which has the reason of a failure.

    `form` is the schema of the deployment's parameters.
    """
    form = form or {}
    shown, reason = None, ""
    with working() as activity:
        while True:
            found = client.read_flow_run(run)
            state = found.state
            if state is not None and state.id != shown:
                shown = state.id
                name = _STATES.get(state.name or "", state.name or "")
                said = f": {in_users_language(state.message, form)}" if state.message else ""
                print_text(f"{found.name} · {translated(name)}{said}")
                activity.say(DOING.get(state.type.value, ""))
            if state is not None and state.is_final():
                return state
            if (now := why_waiting(client, found)) and now != reason:
                reason = now
                print_text(reason)
            _show_progress(client, run, activity)
            time.sleep(WATCH_SECONDS)


def in_users_language(text: str, form: Mapping[str, Any]) -> str:
    """Return the message of a run's state, or a notice of its summary, translated if this project made it.

    Advice in it names the fields of the run's form, as the message itself does.
    """
    return with_fields(translated(stored_message(text, _ENDINGS)), form)


def why_waiting(client: SyncPrefectClient, run: FlowRun) -> str:
    """Return why no worker has taken a run that is due: none is online, or all are busy. Empty for other reasons."""
    state = run.state
    due = state.state_details.scheduled_time if state is not None and state.is_scheduled() else None
    if due is None or datetime.now(UTC) < due + PATIENCE or not run.work_queue_name:
        return ""
    for finding in check_workers(client, [run.work_queue_name]):
        if finding.level != "ok":
            return f"{translated(finding.found)}. {translated(finding.fix)}"
    if busy := _being_done(client, run.work_queue_name):
        runs = named([one.name for one in busy])
        return say("Waiting: the queue {queue} is busy with {runs}", queue=run.work_queue_name, runs=runs)
    return ""


def _being_done(client: SyncPrefectClient, queue: str) -> list[FlowRun]:
    """Return the runs of a work queue that workers have taken, oldest first."""
    wanted = {"work_queue_name": {"any_": [queue]}, "state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(wanted),
        work_pool_filter=WorkPoolFilter.model_validate({"name": {"any_": [POOL]}}),
        sort=FlowRunSort.START_TIME_ASC,
    )


def _show_progress(client: SyncPrefectClient, run: UUID, activity: Activity) -> None:
    for artifact in _progress(client, run):
        percent = float(artifact.data) if isinstance(artifact.data, int | float) else 0.0
        text = in_parts(plain_text(artifact.description or ""))
        activity(Update(str(artifact.key), "", round(percent), 100, text))


def in_parts(text: str) -> str:
    """Return a description of progress, such as `first: loading PyTorch`, with its known parts translated."""
    return "".join(translated(stored_message(part)) for part in re.split("(: |; )", text))


def _progress(client: SyncPrefectClient, run: UUID) -> list[Artifact]:
    """Return the progress artifacts of a run and of its subflows, oldest first."""
    called = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    runs = [run, *(one.id for one in client.read_flow_runs(flow_run_filter=called))]
    wanted = {"type": {"any_": ["progress"]}, "flow_run_id": {"any_": runs}}
    found = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate(wanted), sort=ArtifactSort.ID_DESC)
    return sorted(found, key=lambda artifact: artifact.created or 0)

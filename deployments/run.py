"""`musicgen-flows run`: `prefect deployment run` by a deployment's short name, and what came of it."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from deployments.api import check_api, explain_lost, has_api
from deployments.console import output
from deployments.environment import LOCAL_API
from deployments.options import UsageError
from deployments.parameters import RunParameters
from deployments.run_parameters import check, parsed
from deployments.weekly import SCHEDULER_SECONDS, describe_next, set_weekly
from musicgen_core.errors import MusicgenError
from musicgen_core.wording import counted

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas import State

WATCH_SECONDS = 2.0
WAVS = 8
"""Of a run that are linked in the terminal"""


def run(parameters: dict[str, Any]) -> int:
    chosen = RunParameters(**parameters)
    assert chosen.deployment is not None, "the command line sees to it"
    problems = []
    if chosen.weekly and (chosen.deployment != "train-lora" or chosen.watch):
        problems.append("--weekly goes with train-lora, and not with --watch")
    if chosen.weekly == "off" and chosen.param:
        problems.append("-p goes with --weekly on, not with off")
    if problems:
        raise UsageError(problems)
    if not has_api():
        raise MusicgenError(
            f"no Prefect server answers at {LOCAL_API}, and PREFECT_API_URL is not set",
            "Start one with musicgen-flows up",
        )
    check_api()
    if chosen.weekly:
        parameters = set_weekly(chosen.weekly == "on", parsed(chosen.param))
        shown = ", ".join(f"{name}={json.dumps(value)}" for name, value in parameters.items())
        output.print(f"The weekly retraining is {chosen.weekly}, its parameters: {shown}", markup=False)
        if chosen.weekly == "on":
            with output.status("Waiting for the server to schedule it …"):
                planned = describe_next(SCHEDULER_SECONDS)
            output.print(f"Next retraining: {planned}", soft_wrap=True, markup=False)
        return 0
    return _start(chosen.deployment, parsed(chosen.param), chosen.watch)


def _start(name: str, parameters: dict[str, Any], watch: bool) -> int:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.utilities.urls import url_for

    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"{name}/{name}")
        except ObjectNotFound as error:
            found = f"the deployment {name} is not on this server"
            raise MusicgenError(found, "Start musicgen-flows up first") from error
        check(parameters, deployment)
        # Until it starts and says what it is about, it has this name.
        run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters, name=name)
        output.print(f"Created the run {run.name}: {url_for('flow-run', obj_id=run.id)}", soft_wrap=True, markup=False)
        if not watch:
            return 0
        try:
            state = _watched(client, run.id)
        except KeyboardInterrupt:
            output.print("The run goes on without this terminal: see the Prefect UI")
            return 130
        except httpx.HTTPError as error:
            if lost := explain_lost(error):
                raise MusicgenError(lost.found, "Once it answers again, its UI shows the run") from error
            raise
        with contextlib.suppress(httpx.HTTPError):  # the run has ended as it has, whether or not that can be shown
            _show_outcome(client, run.id)
    return 0 if state.is_completed() else 1


def _show_outcome(client: SyncPrefectClient, run: UUID) -> None:
    """Print where the run's summary is, and the pages and wavs that a browser can open, each on a line of its own."""
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
    from prefect.settings import get_current_settings

    from tasks.served import links_in

    of_run = ArtifactFilterFlowRunId(any_=[run])
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["summary"]), flow_run_id=of_run)
    for summary in client.read_artifacts(artifact_filter=wanted, limit=1):
        links = links_in(str(summary.data))
        pages = [link for link in links if link.endswith(".html")]
        wavs = [link for link in links if link.endswith(".wav")]
        output.print("Summary:")
        ui = get_current_settings().ui_url or str(client.api_url).rstrip("/").removesuffix("/api")
        output.print(f"{ui}/artifacts/artifact/{summary.id}", soft_wrap=True, markup=False)
        if pages or wavs:
            output.print("To open in a browser:")
        for link in (*pages, *wavs[:WAVS]):
            output.print(link, soft_wrap=True, markup=False)
        if len(wavs) > WAVS:
            output.print(f"and {counted(len(wavs) - WAVS, 'more wav')}, all on the page")


def _watched(client: SyncPrefectClient, run: UUID) -> State:
    """Tell of a run's states until the last one, which has the reason if it failed."""
    told = None
    while True:
        found = client.read_flow_run(run)
        state = found.state
        if state is not None and state.id != told:
            told = state.id
            message = f": {state.message}" if state.message else ""
            output.print(f"{found.name} · {state.name}{message}", soft_wrap=True, markup=False)
        if state is not None and state.is_final():
            return state
        time.sleep(WATCH_SECONDS)

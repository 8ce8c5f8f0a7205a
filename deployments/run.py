"""`musicgen-flows run`: `prefect deployment run` by a deployment's short name, with the outcome of the run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import State
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.utilities.urls import url_for

from deployments.activity import working
from deployments.api import check_api, explain_lost, has_api
from deployments.console import print_line, print_outcome, print_text
from deployments.environment import LOCAL_API
from deployments.inputs import arranged, parsed
from deployments.options import UsageError
from deployments.parameters import RunParameters
from deployments.watching import watch_run
from deployments.weekly import SCHEDULER_SECONDS, coming_page, describe_next, set_weekly
from musicgen_core.errors import MusicgenError
from musicgen_core.language import message, say, translated
from tasks.forms import with_fields
from tasks.next_steps import Made, Outcome, Step, from_comment, in_shell
from tasks.served import links_in

_INVALID = "Validation of flow parameters failed"
"""Beginning of Prefect's message on a run whose parameters don't fit, which ends without a summary"""
WAVS = 8
"""Maximum number of a run's WAV files that the terminal links."""
_ON_OFF = {"on": message("on"), "off": message("off")}
_SWITCH = {
    "on": Step(message("Switch it off again"), "run", {"deployment": "train-lora", "weekly": "off"}),
    "off": Step(message("Switch it on again"), "run", {"deployment": "train-lora", "weekly": "on"}),
}
"""By the state of the weekly retraining, what one can do about it"""


def run(parameters: dict[str, Any]) -> int:
    chosen = RunParameters(**parameters)
    assert chosen.deployment is not None, "the command line sees to it"
    problems = []
    if chosen.weekly and (chosen.deployment != "train-lora" or chosen.watch):
        problems.append(message("--weekly goes with train-lora, and not with --watch"))
    if chosen.weekly == "off" and chosen.param:
        problems.append(message("-p goes with --weekly on, not with off"))
    if problems:
        raise UsageError(problems)
    if not has_api():
        raise MusicgenError(
            message("no Prefect server answers at {local_api}, and PREFECT_API_URL is not set", local_api=LOCAL_API),
            message(
                "Start one with uv run musicgen-flows up; where it has another port, "
                "export the PREFECT_API_URL that it shows"
            ),
        )
    with working(message("asking the Prefect server")):
        check_api()
    if chosen.weekly:
        made: tuple[Made, ...] = ()
        parameters = set_weekly(chosen.weekly == "on", parsed(chosen.param))
        shown = ", ".join(f"{name}={json.dumps(value)}" for name, value in parameters.items())
        weekly = _ON_OFF[chosen.weekly]
        print_text(say("The weekly retraining is {weekly}, its parameters: {shown}", weekly=weekly, shown=shown))
        if chosen.weekly == "on":
            with working(message("waiting for the server to schedule it")):
                planned, page = describe_next(SCHEDULER_SECONDS), coming_page()
            print_text(say("Next retraining: {planned}", planned=planned))
            made = (Made(message("coming retraining runs, in the Prefect UI"), page),) if page else ()
        print_outcome(Outcome(made, (_SWITCH[chosen.weekly],)))
        return 0
    return _start(chosen.deployment, parsed(chosen.param), chosen.watch)


def _start(name: str, parameters: dict[str, Any], watch: bool) -> int:
    with contextlib.ExitStack() as stack:
        with working(message("creating the run")):
            client = stack.enter_context(get_client(sync_client=True))
            run, form = create_run(client, name, parameters)
        if watch:
            print_text(say("Created the run {name}:", name=run.name))
        else:
            print_text(
                say(
                    "Created the run {name}. Its page shows its progress and, at the end, its summary; "
                    "with --watch the terminal shows them, too:",
                    name=run.name,
                )
            )
        if page := url_for("flow-run", obj_id=run.id):
            print_line(page)
        if not watch:
            return 0
        try:
            state = watch_run(client, run.id, form)
        except KeyboardInterrupt:
            print_text(say("The run continues without this terminal: see the Prefect UI"))
            return 130
        except httpx.HTTPError as error:
            if lost := explain_lost(error):
                raise MusicgenError(lost.found, message("Once it answers again, its UI shows the run")) from error
            raise
        with contextlib.suppress(httpx.HTTPError):  # the run has ended as it has, whether or not that can be shown
            outcome = _outcome(client, run.id, state)
            notice = with_fields(translated(outcome.notice), form)
            print_outcome(replace(outcome, notice=notice), on_server=True)
    return 0 if state.is_completed() else 1


def create_run(client: SyncPrefectClient, name: str, parameters: dict[str, Any]) -> tuple[FlowRun, Mapping[str, Any]]:
    """Create a run, and return it with the schema of its deployment's parameters."""
    try:
        deployment = client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound as error:
        found = message("the deployment {deployment} is not on this server", deployment=name)
        raise MusicgenError(found, message("Register it first: uv run musicgen-flows up")) from error
    parameters = arranged(parameters, deployment)
    # The name until the flow starts and sets a descriptive one.
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters, name=name)
    return run, deployment.parameter_openapi_schema or {}


def _outcome(client: SyncPrefectClient, run: UUID, state: State) -> Outcome:
    """Return the outputs in the run's summary with links for a browser, or how to repeat a run that failed."""
    found, made = Outcome(), []
    of_run = ArtifactFilterFlowRunId(any_=[run])
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["summary"]), flow_run_id=of_run)
    for summary in client.read_artifacts(artifact_filter=wanted, limit=1):
        page = str(summary.data)
        found = from_comment(page) or found
        ui = get_current_settings().ui_url or str(client.api_url).rstrip("/").removesuffix("/api")
        made.append(Made(message("summary"), f"{ui}/artifacts/artifact/{summary.id}"))
        links = links_in(page)
        pages = [link for link in links if link.endswith(".html")]
        wavs = [link for link in links if link.endswith(".wav")]
        made += [Made(message("to open in a browser"), link) for link in (*pages, *wavs[:WAVS])]
    if found.is_refused or str(state.message).startswith(_INVALID):
        page = url_for("flow-run", obj_id=run) or str(run)
        made.append(Made(message("to correct its parameters, press Copy to new run on its page"), page))
    elif not state.is_completed():
        api = get_current_settings().api.url
        retry = in_shell("env", f"PREFECT_API_URL={api}", "prefect", "flow-run", "retry", str(run))
        made.append(Made(message("to run it again once the reason is gone"), retry))
    return Outcome((*found.made, *made), found.steps, found.notice)

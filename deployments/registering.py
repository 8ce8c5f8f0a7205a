"""Register work pool, deployments, automations and places on a Prefect server.

Idempotent: registering again updates what differs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml

from deployments.environment import ROOT
from deployments.parameters import Deployment
from musicgen_core.errors import MusicgenError
from musicgen_core.language import message
from musicgen_core.stages import advance, mention
from tasks.forms import in_groups

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.events import Automation

POOL = "gpu"
QUEUE, TOKENIZING_QUEUE = "default", "tokenizing"
DEPLOYMENTS: tuple[str, ...] = get_args(Deployment)
PLACES = {"archives": "archives", "tokens": "tokens", "runs": "runs", "output": "music"}
"""By the name of each place, the folder that stands for it at first."""
PREFECT_FILE = "deployments/prefect.yaml"
_REGISTERING = message("registering the deployments")
_DEPLOYED = "successfully created"
"""In the line that Prefect prints of each deployment, new or not"""
_COLUMNS = 500
"""Width to which Prefect wraps what it prints: no line is broken"""


def register() -> None:
    """Update the registrations of the server in PREFECT_API_URL. Needs none of the packages for training.

    Raises:
        MusicgenError: Prefect refused something.
    """
    mention(_REGISTERING)
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _ensure_pool(client)
        _deploy(client)
        _ensure_one_tokenizing(client)
        ensure_automations(client, read_automations())


def prefect(*command: str) -> None:
    """Run a command of Prefect. Its output is shown only if it fails.

    Raises:
        MusicgenError: it failed.
    """
    deque(_lines_of_prefect(*command), maxlen=0)


def _lines_of_prefect(*command: str) -> Iterator[str]:
    """Run a command of Prefect, and yield its output line by line.

    Raises:
        MusicgenError: it failed.
    """
    last = ""
    with subprocess.Popen(
        [sys.executable, "-m", "prefect", "--no-prompt", *command],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(_COLUMNS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = line.strip() or last
                yield line
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise MusicgenError(
            message("prefect {command} failed ({last_line})", command=" ".join(command), last_line=last),
            message("Run it by hand to see all of its output"),
        )


def _ensure_pool(client: SyncPrefectClient) -> None:
    """Create the work pool. An existing one is left as a person has set it. Deploying creates its queues."""
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        from prefect.workers.process import ProcessWorker

        template = ProcessWorker.get_default_base_job_template()
        description = "Tokenizing, training and generating. Each worker runs one job at a time, as a process."
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template, description=description)
        )


def _deploy(client: SyncPrefectClient) -> None:
    """Deploy prefect.yaml without its schedules, which would replace the settings of people."""
    definition = yaml.safe_load((ROOT / PREFECT_FILE).read_text(encoding="utf-8"))
    schedules = {entry["name"]: entry.pop("schedules", []) for entry in definition["deployments"]}
    with tempfile.TemporaryDirectory() as folder:
        without_schedules = Path(folder) / "prefect.yaml"
        without_schedules.write_text(yaml.safe_dump(definition), encoding="utf-8")
        try:
            done, total = 0, len(schedules)
            for line in _lines_of_prefect("deploy", "--all", "--prefect-file", str(without_schedules)):
                if _DEPLOYED in line:
                    done += 1
                    advance(_REGISTERING, done, total)
        except MusicgenError as error:
            by_hand = f"prefect deploy --all --prefect-file {PREFECT_FILE} shows all of its output"
            raise MusicgenError(error.found, by_hand) from error
    for name, wanted in schedules.items():
        _ensure_schedules(client, name, wanted)


def _ensure_schedules(client: SyncPrefectClient, name: str, wanted: Sequence[dict[str, Any]]) -> None:
    """Create a deployment's missing schedules, and group the parameters of the existing ones."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import CronSchedule

    deployment = client.read_deployment_by_name(f"{name}/{name}")
    for schedule in deployment.schedules:
        # The form of a group neither shows nor changes parameters that earlier versions stored outside of it.
        chosen = in_groups(schedule.parameters, deployment.parameter_openapi_schema or {})
        if chosen != schedule.parameters:
            client.update_deployment_schedule(deployment.id, schedule.id, active=schedule.active, parameters=chosen)
    there = {schedule.slug for schedule in deployment.schedules}
    for entry in wanted:
        if entry["slug"] not in there:
            cron = CronSchedule(cron=entry.pop("cron"), timezone=entry.pop("timezone"))
            client.create_deployment_schedules(deployment.id, [DeploymentScheduleCreate(schedule=cron, **entry)])


def _ensure_one_tokenizing(client: SyncPrefectClient) -> None:
    """Limit the queue, which deploying has created, to one run. An existing limit is kept.

    Two concurrent runs would tokenize the same archives twice. A deployment's limit does not work here: it is a lease
    in the server's memory, and a restarted server marks runs whose lease it doesn't know as crashed.
    """
    if client.read_work_queue_by_name(TOKENIZING_QUEUE, work_pool_name=POOL).concurrency_limit is None:
        prefect("work-queue", "set-concurrency-limit", TOKENIZING_QUEUE, "1", "--pool", POOL)


def read_automations() -> list[dict[str, Any]]:
    """Return the definitions of automations.yaml."""
    text = (ROOT / "deployments" / "automations.yaml").read_text(encoding="utf-8")
    automations: list[dict[str, Any]] = yaml.safe_load(text)["automations"]
    return automations


def ensure_automations(client: SyncPrefectClient, wanted: Sequence[Mapping[str, Any]]) -> None:
    """Create or update each of these automations. Paused ones stay paused; unchanged ones are not touched."""
    from prefect.events.schemas.automations import AutomationCore

    for definition in wanted:
        automation = AutomationCore.model_validate(definition)
        found = client.read_automations_by_name(automation.name)
        for doubled in found[1:]:
            client.delete_automation(doubled.id)
        if not found:
            client.create_automation(automation)
        elif _content(found[0]) != _content(automation):
            client.update_automation(found[0].id, automation.model_copy(update={"enabled": found[0].enabled}))


def _content(automation: Automation | Any) -> dict[str, Any]:
    """Return the content of an automation without the fields that the server adds."""
    content: dict[str, Any] = automation.model_dump(include={"description", "trigger", "actions"})
    content["trigger"].pop("id", None)
    return content


def set_defaults(model: str | None, device: str | None) -> dict[str, str]:
    """Set the variables for the model and device of deployments that are given. Return all that are set."""
    from prefect.variables import Variable

    if model and Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())  # workers may be in another directory
    defaults = {}
    for name, chosen in {"model": model, "device": device}.items():
        variable = f"musicgen_{name}"
        if chosen:
            Variable.set(variable, chosen, overwrite=True)
        if value := chosen or Variable.get(variable):
            defaults[variable] = str(value)
    return defaults


def stored_places() -> dict[str, str]:
    """Return the variables for the places of deployments. Some may be missing."""
    from prefect.variables import Variable

    found = {f"musicgen_{name}": Variable.get(f"musicgen_{name}") for name in PLACES}
    return {variable: str(value) for variable, value in found.items() if value}


def set_places(given: Mapping[str, str | None]) -> dict[str, str]:
    """Set the variables for the places of deployments that are given or not set yet. Return all of them."""
    from prefect.variables import Variable

    places = {}
    for name, folder in PLACES.items():
        variable, chosen = f"musicgen_{name}", given.get(name)
        value = None if chosen else Variable.get(variable)
        if value is None:
            value = chosen if chosen and "://" in chosen else str(Path(chosen or folder).expanduser().resolve())
            Variable.set(variable, value, overwrite=True)
        places[variable] = str(value)
    return places

"""What a Prefect server is told once: work pool, deployments, automations, places. Again changes what is different."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from musicgen_core.errors import MusicgenError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.events import Automation

ROOT = Path(__file__).resolve().parent.parent
POOL = "gpu"
QUEUE, TOKENIZING_QUEUE = "default", "tokenizing"
DEPLOYMENTS = ("tokenize-archives", "train-lora", "generate-music", "finetune")
PLACES = {"archives": "archives", "tokens": "tokens", "runs": "runs", "output": "music"}
"""By the name of each place, the folder that stands for it at first."""
WEEKLY = "weekly-retrain"


def register() -> None:
    """Bring the server that PREFECT_API_URL names up to date. Needs none of the packages that training needs.

    Raises:
        MusicgenError: Prefect refused something.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        _ensure_pool(client)
        weekly = _find_weekly(client)
        try:
            prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        finally:
            if weekly is not None and weekly.active:  # which deploying has switched off
                set_weekly(True)
        ensure_automations(client, read_automations())


def prefect(*command: str) -> None:
    """Run a command of Prefect, showing its output only if it fails.

    Raises:
        MusicgenError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise MusicgenError(
            f"prefect {' '.join(command)} failed ({' '.join(last)})", "Run it by hand to see all of its output"
        )


def _ensure_pool(client: SyncPrefectClient) -> None:
    """Create the work pool; one that is there stays as a person has set it. Deploying creates its queues."""
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


def _find_weekly(client: SyncPrefectClient) -> DeploymentSchedule | None:
    from prefect.exceptions import ObjectNotFound

    try:
        deployment = client.read_deployment_by_name("train-lora/train-lora")
    except ObjectNotFound:
        return None
    return next((schedule for schedule in deployment.schedules if schedule.slug == WEEKLY), None)


def set_weekly(active: bool) -> None:
    """Switch the weekly retraining on or off.

    Raises:
        MusicgenError: train-lora is not deployed.
    """
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        schedule = _find_weekly(client)
        if schedule is None:
            raise MusicgenError(
                f"the deployment train-lora with its schedule {WEEKLY} is not on this server",
                "Start musicgen-flows up first",
            )
        assert schedule.deployment_id is not None
        # With its parameters: an update that leaves them out deletes them (PrefectHQ/prefect#17982).
        client.update_deployment_schedule(
            schedule.deployment_id, schedule.id, active=active, parameters=schedule.parameters
        )


def read_automations() -> list[dict[str, Any]]:
    """What automations.yaml holds."""
    text = (ROOT / "deployments" / "automations.yaml").read_text(encoding="utf-8")
    automations: list[dict[str, Any]] = yaml.safe_load(text)["automations"]
    return automations


def ensure_automations(client: SyncPrefectClient, wanted: Sequence[Mapping[str, Any]]) -> None:
    """Have each of these automations once. One that was paused stays so; one that is the same isn't touched."""
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
    """What an automation does, without what the server adds to it."""
    content: dict[str, Any] = automation.model_dump(include={"description", "trigger", "actions"})
    content["trigger"].pop("id", None)
    return content


def set_places(given: Mapping[str, str | None]) -> dict[str, str]:
    """Set the variables that deployments take their places from, where one is given or none is set yet → all."""
    from prefect.variables import Variable

    places = {}
    for name, folder in PLACES.items():
        variable, chosen = f"musicgen_{name}", given.get(name)
        value = Variable.get(variable)
        if chosen or value is None:
            value = chosen if chosen and "://" in chosen else str(Path(chosen or folder).expanduser().resolve())
            Variable.set(variable, value, overwrite=True)
        places[variable] = str(value)
    return places

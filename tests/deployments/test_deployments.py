"""The registrations of `up` on a real, temporary server, made once and repeated."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import EventTrigger
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running

from deployments import up
from deployments.cli import main
from deployments.environment import ROOT
from deployments.registering import DEPLOYMENTS, POOL, ensure_automations, prefect, read_automations, register
from deployments.up import RESTARTS, restart_missed
from deployments.weekly import describe_next, set_weekly
from musicgen_core.errors import MusicgenError
from musicgen_core.stages import heard_by
from tests.deployments.registered import deployed, offered

NEW_TOKENS_ONLY = {"start": {"init_from_latest": True, "only_new_tokens": True}}

GPU_STACK = ("torch", "torchaudio", "audiocraft", "peft", "transformers", "wandb", "triton")

WITHOUT_GPU_STACK = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({GPU_STACK}))  # an import of any of them fails
sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
runpy.run_module("prefect", run_name="__main__")
"""


def test_registering_needs_no_gpu_packages(client: SyncPrefectClient) -> None:
    command = [sys.executable, "-c", WITHOUT_GPU_STACK]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("successfully created") == len(DEPLOYMENTS)


def test_every_flow_is_deployed_to_its_own_queue_with_heartbeats(client: SyncPrefectClient) -> None:
    for name in DEPLOYMENTS:
        deployment = deployed(client, name)
        queue = "tokenizing" if name in ("caption-archives", "tokenize-archives") else "default"
        assert (deployment.work_pool_name, deployment.work_queue_name) == (POOL, queue)
        assert deployment.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert "musicgen" in deployment.tags and deployment.description


def test_the_weekly_schedule_is_there_and_off_at_first(client: SyncPrefectClient) -> None:
    [schedule] = deployed(client, "train-lora").schedules
    assert (schedule.slug, schedule.active, schedule.parameters) == ("weekly-retrain", False, NEW_TOKENS_ONLY)
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 3 * * 1", "UTC")


def test_a_second_tokenizing_waits_for_the_first_one_to_end(client: SyncPrefectClient) -> None:
    deployment = deployed(client, "tokenize-archives")
    runs = {client.create_flow_run_from_deployment(deployment.id).id for _ in range(2)}
    [first] = offered(client)
    for busy in (Pending(), Running()):
        client.set_flow_run_state(first, busy)
        assert offered(client) == []
    client.set_flow_run_state(first, Completed())
    [second] = offered(client)
    assert {first, second} == runs
    client.set_flow_run_state(second, Cancelled())


def test_registering_again_keeps_settings_and_duplicates_nothing(client: SyncPrefectClient) -> None:
    client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=7, description="ours"))
    set_tokenizing_limit(client, 3)
    train, finetune = (deployed(client, name) for name in ("train-lora", "finetune"))
    [weekly] = train.schedules
    cron = CronSchedule(cron="30 22 * * 5", timezone="Europe/Berlin")
    parameters = {"start": {"init_from_latest": True, "only_new_tokens": False}, "seed": 7}
    client.update_deployment_schedule(train.id, weekly.id, active=True, schedule=cron, parameters=parameters)
    own = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 1 * * *"), parameters={"model": "debug"})
    client.create_deployment_schedules(train.id, [own])  # as the UI does: without a slug
    client.create_deployment_schedules(finetune.id, [own.model_copy(update={"slug": "nightly"})])

    before = shown(client)
    assert [len(before[name]) for name in ("train-lora", "finetune")] == [2, 1]
    assert [entry["name"] for entry in before["automations"]] == sorted(entry["name"] for entry in read_automations())
    register()
    assert shown(client) == before
    pool = client.read_work_pool(POOL)
    assert (pool.concurrency_limit, pool.description, pool.type) == (7, "ours", "process")
    assert tokenizing_limit(client) == 3


def shown(client: SyncPrefectClient) -> dict[str, list[dict[str, Any]]]:
    """Return the schedules of each deployment, and the automations."""
    fields = {"id", "slug", "active", "schedule", "parameters"}
    found = {
        name: [schedule.model_dump(include=fields) for schedule in deployed(client, name).schedules]
        for name in DEPLOYMENTS
    }
    for schedules in found.values():
        schedules.sort(key=lambda entry: str(entry["id"]))
    automations = sorted(client.read_automations(), key=lambda automation: automation.name)
    return {**found, "automations": [automation.model_dump(include={"id", "name"}) for automation in automations]}


def test_registering_again_restores_deletions_and_drops_old_limits(client: SyncPrefectClient) -> None:
    train, tokenize = (deployed(client, name) for name in ("train-lora", "tokenize-archives"))
    client.update_deployment(tokenize.id, DeploymentUpdate(concurrency_limit=1))  # as earlier versions had it
    assert deployed(client, "tokenize-archives").global_concurrency_limit.limit == 1
    set_tokenizing_limit(client, None)
    for schedule in train.schedules:
        client.delete_deployment_schedule(train.id, schedule.id)

    register()
    assert deployed(client, "tokenize-archives").global_concurrency_limit is None
    assert tokenizing_limit(client) == 1
    [weekly] = deployed(client, "train-lora").schedules
    assert (weekly.slug, weekly.active, weekly.parameters) == ("weekly-retrain", False, NEW_TOKENS_ONLY)


def set_tokenizing_limit(client: SyncPrefectClient, limit: int | None) -> None:
    client.request("PATCH", f"/work_pools/{POOL}/queues/tokenizing", json={"concurrency_limit": limit})


def tokenizing_limit(client: SyncPrefectClient) -> int | None:
    return client.read_work_queue_by_name("tokenizing", work_pool_name=POOL).concurrency_limit


def test_registering_groups_parameters_of_earlier_versions(client: SyncPrefectClient) -> None:
    train = deployed(client, "train-lora")
    [weekly] = train.schedules
    before = {"init_from_latest": True, "only_new_tokens": False, "lora_r": 16, "activation_checkpointing": True}
    client.update_deployment_schedule(train.id, weekly.id, active=True, parameters=before)
    register()
    [weekly] = deployed(client, "train-lora").schedules
    assert (weekly.active, weekly.parameters) == (
        True,
        {
            "lora_r": 16,
            "start": {"init_from_latest": True, "only_new_tokens": False},
            "hardware": {"activation_checkpointing": "on"},
        },
    )
    client.update_deployment_schedule(train.id, weekly.id, active=False, parameters=NEW_TOKENS_ONLY)


def test_weekly_on_keeps_parameters_for_each_retraining(
    client: SyncPrefectClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.run.SCHEDULER_SECONDS", 0.0)  # this server has no scheduler

    def stored() -> tuple[bool, dict[str, Any]]:
        [found] = [found for found in deployed(client, "train-lora").schedules if found.slug == "weekly-retrain"]
        return found.active, found.parameters

    set_weekly(False)
    given = {"model": "facebook/musicgen-small", "lora_r": 16, "sample_prompts": ["calm piano"], "copy_to": "a=b"}
    arguments = [f"-p={name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()]
    assert main(["run", "train-lora", "--weekly", "on", *arguments]) == 0
    grouped = {
        "model": "facebook/musicgen-small",
        "lora_r": 16,
        "samples": {"sample_prompts": ["calm piano"]},
        "saving": {"copy_to": "a=b"},
    }
    assert stored() == (True, NEW_TOKENS_ONLY | grouped)
    assert main(["run", "train-lora", "--weekly", "off"]) == 0
    assert stored() == (False, NEW_TOKENS_ONLY | grouped)
    assert main(["run", "train-lora", "--weekly", "on", "-p", "lora_r=32"]) == 0
    assert stored() == (True, NEW_TOKENS_ONLY | grouped | {"lora_r": 32})
    said = capsys.readouterr().out
    assert '"facebook/musicgen-small"' in said and "Next retraining: not scheduled by the server yet" in said
    coming = f"/deployments/deployment/{deployed(client, 'train-lora').id}?tab=Upcoming\n"
    assert coming in said and said.index(coming) < said.index("Next: Switch it off again")

    wrong = ["-p", "lora_rank=4", "-p", "lora_r=many", "-p", "seed=1"]
    assert main(["run", "train-lora", "--weekly", "on", *wrong]) == 2
    error = capsys.readouterr().err
    assert "no parameter 'lora_rank'" in error and "lora_r: 'many' is not of type 'integer'" in error
    assert stored() == (True, NEW_TOKENS_ONLY | grouped | {"lora_r": 32})
    set_weekly(False)


def test_the_next_retraining_is_the_servers_scheduled_run_in_local_time(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = deployed(client, "train-lora").id
    assert describe_next(0).startswith("none")
    set_weekly(True)
    try:
        # What the scheduler does in its loop: the same code of the server's, and the same statement.
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={"min_runs": 2})
        for zone, shown in (("UTC", "Monday DATE 03:00 UTC"), ("Pacific/Honolulu", "Sunday DATE 17:00 HST")):
            with monkeypatch.context() as patch:
                patch.setenv("TZ", zone)
                time.tzset()
                assert re.fullmatch(shown.replace("DATE", r"\d{4}-\d\d-\d\d"), describe_next(0))
        time.tzset()
        client.pause_deployment(deployment)
        assert "train-lora is paused" in describe_next(0)
    finally:
        client.resume_deployment(deployment)
        set_weekly(False)
    assert describe_next(0).startswith("none")


def test_registering_counts_the_deployments(client: SyncPrefectClient) -> None:
    heard: list[str] = []
    with heard_by(lambda stage: heard.append(str(stage))):
        register()
    count = len(DEPLOYMENTS)
    text = "registering the deployments"
    assert heard == [text, *(f"{text}, {number} of {count}" for number in range(1, count + 1))]


def test_a_failed_prefect_command_is_reported_with_its_last_line(client: SyncPrefectClient) -> None:
    with pytest.raises(MusicgenError, match=r"prefect work-queue inspect no-such-queue failed \(.*no-such-queue"):
        prefect("work-queue", "inspect", "no-such-queue")


def test_an_automation_is_touched_only_when_the_file_has_changed(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = read_automations()
    changed[0]["trigger"]["within"] = 120
    [first] = client.read_automations_by_name(changed[0]["name"])
    client.pause_automation(first.id)
    ensure_automations(client, changed)
    [again] = client.read_automations_by_name(changed[0]["name"])
    assert isinstance(again.trigger, EventTrigger)
    assert (again.id, again.trigger.within.total_seconds(), again.enabled) == (first.id, 120, False)

    touched: list[Any] = []
    monkeypatch.setattr(client, "update_automation", lambda *arguments: touched.append(arguments))
    ensure_automations(client, changed)  # an update would forget the heartbeats that are waited for
    assert touched == []


def ended(client: SyncPrefectClient, flow: str, *states: Any) -> UUID:
    """Create a run that went through these states."""
    run = client.create_flow_run_from_deployment(deployed(client, flow).id, state=Pending())
    for state in states:
        client.set_flow_run_state(run.id, state, force=True)
    return run.id


@pytest.fixture
def slow_restarts(client: SyncPrefectClient) -> Iterator[None]:
    """The automation that restarts crashed runs acts after an hour: on a busy machine, 15 s are shorter than a test."""
    automations = read_automations()
    ensure_automations(client, [{**one, "trigger": {**one["trigger"], "within": 3600}} for one in automations])
    yield
    ensure_automations(client, automations)


@pytest.mark.usefixtures("slow_restarts")
def test_only_crashes_that_the_automation_missed_are_restarted(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = [ended(client, flow, Running(), Crashed()) for flow in ("train-lora", "finetune", "tokenize-archives")]
    left = [
        ended(client, "train-lora", *[Running(), Crashed()] * 4),
        ended(client, "train-lora", Crashed()),
        ended(client, "train-lora", Running(), Cancelled()),
        ended(client, "train-lora", Running(), Failed()),
        ended(client, "generate-music", Running(), Crashed()),
    ]
    before = [client.read_flow_run(run).state for run in left]
    assert restart_missed(client, timedelta(minutes=30)) == [], "the automation comes first"
    with monkeypatch.context() as patch:
        patch.setattr(up, "HORIZON", timedelta(0))
        assert restart_missed(client, timedelta(0)) == [], "it is long ago"
    automation = client.read_automations_by_name(RESTARTS)[0]
    client.pause_automation(automation.id)
    try:
        assert restart_missed(client, timedelta(0)) == [], "it is paused"
    finally:
        client.resume_automation(automation.id)
    assert len(restart_missed(client, timedelta(0))) == 3
    for run in crashed:
        state = client.read_flow_run(run).state
        assert state is not None and state.name == "AwaitingRetry" and "newest checkpoint" in str(state.message)
    assert [client.read_flow_run(run).state for run in left] == before
    assert restart_missed(client, timedelta(0)) == []
    for run in crashed:
        client.delete_flow_run(run)

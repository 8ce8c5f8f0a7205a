"""What a server knows after `up` has registered everything, once and again. A real, temporary server."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.events import EventTrigger
from prefect.settings import get_current_settings

from deployments.cli import main
from deployments.registering import DEPLOYMENTS, POOL, ROOT, ensure_automations, read_automations, register, set_weekly
from deployments.up import visible_gpus, worker_commands
from flows.train_lora import train_lora

GPU_STACK = ("torch", "torchaudio", "audiocraft", "peft", "transformers", "wandb", "triton")
WITHOUT_GPU_STACK = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({GPU_STACK}))  # an import of any of them fails
sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
runpy.run_module("prefect", run_name="__main__")
"""


@pytest.fixture(scope="module")
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    """A client of a server where everything is registered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_URL", str(get_current_settings().api.url))  # for `prefect deploy`, a process
        register()
        with get_client(sync_client=True) as one:
            yield one


def deployed(client: SyncPrefectClient, name: str) -> Any:
    return client.read_deployment_by_name(f"{name}/{name}")


def test_registering_needs_no_gpu_packages(client: SyncPrefectClient) -> None:
    command = [sys.executable, "-c", WITHOUT_GPU_STACK]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("successfully created") == len(DEPLOYMENTS)


def test_every_flow_is_deployed_to_its_own_queue_with_heartbeats(client: SyncPrefectClient) -> None:
    for name in DEPLOYMENTS:
        deployment = deployed(client, name)
        queue = "tokenizing" if name == "tokenize-archives" else "default"
        assert (deployment.work_pool_name, deployment.work_queue_name) == (POOL, queue)
        assert deployment.job_variables["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
        assert "musicgen" in deployment.tags and deployment.description
    assert deployed(client, "tokenize-archives").global_concurrency_limit.limit == 1
    assert deployed(client, "tokenize-archives").concurrency_options.collision_strategy == "ENQUEUE"


def test_the_run_form_of_train_lora_explains_every_parameter_and_offers_the_choices(client: SyncPrefectClient) -> None:
    form = deployed(client, "train-lora").parameter_openapi_schema["properties"]
    assert list(form)[:2] == ["tokens", "run_dir"]
    assert [name for name, entry in form.items() if not entry.get("description")] == []
    assert form["learning_rate"]["description"] == "learning rate of AdamW, constant after the warm-up"
    assert form["full_models"]["enum"] == ["each_epoch", "best_and_final", "none"]
    assert form["device"]["enum"] == ["auto", "cpu", "cuda"]
    assert "Args:" not in (train_lora.description or "")


def test_registering_again_leaves_what_a_person_has_set_and_doubles_nothing(client: SyncPrefectClient) -> None:
    wanted = {"init_from_latest": True, "only_new_tokens": True}
    [schedule] = deployed(client, "train-lora").schedules
    assert (schedule.active, schedule.parameters, schedule.schedule.cron) == (False, wanted, "0 3 * * 1")
    set_weekly(True)
    client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=7, description="ours"))
    before = {automation.name: automation.id for automation in client.read_automations()}
    assert sorted(before) == sorted(definition["name"] for definition in read_automations())

    register()
    [again] = deployed(client, "train-lora").schedules
    assert (again.id, again.active, again.parameters) == (schedule.id, True, wanted)
    pool = client.read_work_pool(POOL)
    assert (pool.concurrency_limit, pool.description, pool.type) == (7, "ours", "process")
    assert {automation.name: automation.id for automation in client.read_automations()} == before

    set_weekly(False)
    [off] = deployed(client, "train-lora").schedules
    assert (off.active, off.parameters) == (False, wanted)


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


def test_each_gpu_gets_a_worker_of_one_job_and_tokenizing_has_its_own() -> None:
    first, second, tokenizing = worker_commands(None, ["0", "1"])
    assert (first[1], second[1], tokenizing[1]) == ({"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}, {})
    for command, _ in (first, second, tokenizing):
        assert command[command.index("--limit") + 1] == "1"
    queues = [command[command.index("--work-queue") + 1] for command, _ in (first, second, tokenizing)]
    assert queues == ["default", "default", "tokenizing"]
    assert len({command[-1] for command, _ in (first, second, tokenizing)}) == 3  # names


def test_a_single_worker_sees_every_gpu_and_many_share_them() -> None:
    [alone, _] = worker_commands(1, ["0", "1", "2", "3"])
    assert alone[1] == {}
    assert [environment for _, environment in worker_commands(3, ["5"])[:3]] == [{"CUDA_VISIBLE_DEVICES": "5"}] * 3
    assert len(worker_commands(None, [])) == 2


def test_gpus_are_those_that_were_made_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f3a")
    assert visible_gpus() == ["2", "GPU-8f3a"]
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert visible_gpus() == []


def test_the_weekly_switch_goes_with_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["tokenize-archives"], ["train-lora", "--watch"], ["train-lora", "-p", "seed=1"]):
        assert main(["run", *wrong, "--weekly", "on"]) == 2
        assert "--weekly goes with train-lora and with nothing else" in capsys.readouterr().err

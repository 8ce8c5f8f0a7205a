"""A real server, a real worker, and deployments run through `prefect deployment run`."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bench.servers import free_port
from deployments.environment import ROOT, is_healthy
from tests.deployments.running_up import Up, ask, command, processes_of, run_deployment, start_up, wait
from tests.run_directories import assert_saved_where_it_was, steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]  # the first one waits for the server, too
TAG = "auto-scheduled"  # of Prefect's, for what a schedule has started


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, demo_archives: Path) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "WANDB_MODE": "disabled",
    }
    places = [f"--archives={demo_archives}", f"--tokens={folder / 'tokens'}", f"--runs={folder / 'runs'}"]
    places.append(f"--output={folder / 'music'}")
    ports = ["--port", str(port), "--files-port", str(free_port())]
    defaults = ["--model", "debug", "--device", "cpu"]
    with start_up(environment, folder / "up.log", *ports, "--workers", "2", *places, *defaults) as up:
        yield up


def test_up_uses_the_server_that_it_starts_and_no_other(up: Up) -> None:
    processes = list(processes_of(up.environment["PREFECT_HOME"]))
    assert sum("server start" in process for process in processes) == 1
    assert not [process for process in processes if "server:create_app" in process]  # a temporary one


def test_deployments_run_to_completed_with_what_up_set(up: Up) -> None:
    quick = ("batch_size=4", "gradient_accumulation_steps=1", "segment_seconds=1", "max_steps=2")
    jobs = {
        "tokenize-archives": (),
        "train-lora": quick,
        "evaluate-adapter": (),
        "generate-music": ('prompts=["jazz"]', "duration=0.5"),
    }
    for name, parameters in jobs.items():
        done = run_deployment(up, name, *parameters)
        assert done.returncode == 0, done.stdout + done.stderr + up.log.read_text()[-3000:]
        assert f"Created the run {name}:\nhttp" in done.stdout
        assert "Completed" in done.stdout
    folder = up.log.parent
    assert (folder / "tokens" / "archive_batch_0002.json").exists()
    [run] = (folder / "runs").iterdir()
    assert run.name.startswith("train-")
    assert (run / "lora_weights" / "final_lora.pt").exists()
    assert (run / "evaluation" / "report.html").exists()
    [music] = (folder / "music").iterdir()
    wav = music / "generated_000.wav"
    sidecar = json.loads(wav.with_suffix(".json").read_text())
    assert sidecar["adapter"]["path"] == str(run / "lora_weights" / "best_lora.pt")
    assert sidecar["model"].startswith("debug@")
    [link] = re.findall(r"^http://127\.0\.0\.1:\d+/output/\S+\.wav$", done.stdout, re.MULTILINE)
    with urllib.request.urlopen(link, timeout=60) as answer:
        assert (answer.read(), answer.headers["content-type"]) == (wav.read_bytes(), "audio/wav")


def test_a_failed_run_makes_run_watch_exit_1(up: Up) -> None:
    done = run_deployment(up, "train-lora", "model=debug", "device=cpu", "tokens=/nowhere")
    assert done.returncode == 1


def test_an_error_of_a_server_service_is_printed_as_one_line(up: Up) -> None:
    """Its scheduler misses a table for one of its loops, which it has once a minute."""
    database = Path(up.environment["PREFECT_HOME"]) / "prefect.db"
    with renamed_table(database, "deployment_schedule"):
        wait(lambda: bool(service_errors(up, "schedule_deployments()")), up.log)
    assert "prefect config set" not in up.log.read_text()  # of the server's banner
    assert service_errors(up, "schedule_deployments()")[0].endswith("no such table: deployment_schedule")
    assert "To try each service of the server: uv run musicgen-flows doctor" in up.log.read_text()


def service_errors(up: Up, service: str) -> list[str]:
    lines = up.log.read_text().splitlines()
    return [line for line in lines if line.startswith("Prefect server: ") and service in line]


@contextmanager
def renamed_table(database: Path, name: str) -> Iterator[None]:
    def execute(sql: str) -> None:
        with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as connection:
            connection.execute(sql)

    execute(f"alter table {name} rename to missing")
    try:
        yield
    finally:
        execute(f"alter table missing rename to {name}")


def test_the_weekly_schedule_starts_a_training_without_a_person(up: Up, demo_tokens: Path) -> None:
    """The server's scheduler makes the run, a worker takes it when it is due, and it trains."""
    api, runs = up.environment["PREFECT_API_URL"], up.log.parent / "runs"
    before = set(runs.glob("*"))
    parameters = ["model=debug", "device=cpu", "batch_size=4", "gradient_accumulation_steps=1", "segment_seconds=1"]
    parameters += ["max_steps=2", "evaluate=false", "only_new_tokens=false", f"tokens={demo_tokens}"]
    switched_on = weekly(up, "on", *parameters)
    assert f"Next retraining: {next_monday().astimezone():%A %Y-%m-%d %H:%M %Z}" in switched_on

    # The same schedule, with a next time that is soon.
    deployment = ask(f"{api}/deployments/name/train-lora/train-lora")
    [schedule] = deployment["schedules"]
    soon = (datetime.now(UTC) + timedelta(seconds=100)).isoformat()
    daily = {"interval": 24 * 3600, "anchor_date": soon, "timezone": "UTC"}
    address = f"{api}/deployments/{deployment['id']}/schedules/{schedule['id']}"
    ask(address, {"schedule": daily, "parameters": schedule["parameters"]}, "PATCH")
    wait(lambda: bool(set(runs.glob("*")) - before), up.log)
    [directory] = set(runs.glob("*")) - before
    wait((directory / "lora_weights" / "final_lora.pt").exists, up.log)
    assert steps(directory) == [1, 2]

    def scheduled() -> list[str]:
        of_schedule = {"deployments": {"id": {"any_": [deployment["id"]]}}, "flow_runs": {"tags": {"all_": [TAG]}}}
        return [run["state_name"] for run in ask(f"{api}/flow_runs/filter", of_schedule)]

    assert "Scheduled" in scheduled()  # tomorrow's
    weekly(up, "off")
    wait(lambda: scheduled() == ["Completed"], up.log)


def next_monday() -> datetime:
    """When the schedule is due next: Mondays at 3:00 UTC."""
    now = datetime.now(UTC)
    monday = (now - timedelta(days=now.weekday())).replace(hour=3, minute=0, second=0, microsecond=0)
    return monday if monday > now else monday + timedelta(days=7)


def weekly(up: Up, switch: str, *parameters: str) -> str:
    arguments = [argument for parameter in parameters for argument in ("-p", parameter)]
    line = command("run", "train-lora", "--weekly", switch, *arguments)
    done = subprocess.run(line, cwd=ROOT, env=up.environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def up_again(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("up", *arguments), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_up_again_finds_a_server_with_another_host(tmp_path: Path) -> None:
    port = str(free_port())
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "200"}
    environment.pop("PREFECT_API_URL", None)
    places = [f"--{name}={tmp_path / name}" for name in ("archives", "tokens", "runs", "output")]
    arguments = ["--host", "127.0.0.2", "--port", port, "--workers", "1", *places]
    with start_up(environment, tmp_path / "up.log", *arguments):
        again = up_again(environment, "--port", port)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"http://127.0.0.2:{port}" in again.stdout and str(tmp_path / "tokens") in again.stdout


def test_up_again_uses_the_running_server_and_duplicates_nothing(up: Up) -> None:
    workers = [line for line in processes_of(up.environment["PREFECT_HOME"]) if "worker start" in line]
    assert sorted("--work-queue tokenizing" in line for line in workers) == [False, False, True]
    port = up.environment["PREFECT_API_URL"].rpartition(":")[2].removesuffix("/api")
    environment = {**up.environment, "COLUMNS": "200"}
    again = up_again(environment, "--port", port, "--host", "0.0.0.0", "--workers", "3")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "musicgen-flows up runs already" in again.stdout
    assert f"http://127.0.0.1:{port}" in again.stdout and "--workers count when it starts" in again.stdout
    assert "-gpu-0" in again.stdout and "-tokenizing" in again.stdout
    assert str(up.log.parent / "tokens") in again.stdout  # the places stay as the first has set them
    assert sorted(workers) == sorted(
        line for line in processes_of(up.environment["PREFECT_HOME"]) if "worker start" in line
    )


def test_a_retry_resumes_where_the_cancelled_run_announced(up: Up, demo_tokens: Path) -> None:
    api, log, run = up.environment["PREFECT_API_URL"], up.log, up.log.parent / "runs" / "cancelled"
    deployment = ask(f"{api}/deployments/name/train-lora/train-lora")
    parameters = {"model": "debug", "device": "cpu", "batch_size": 1, "gradient_accumulation_steps": 1}
    parameters |= {"segment_seconds": 0.5, "num_epochs": 10_000, "max_steps": 100_000, "full_models": "none"}
    parameters |= {"tokens": str(demo_tokens), "run_dir": str(run)}
    created = ask(f"{api}/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})
    address = f"{api}/flow_runs/{created['id']}"

    def states() -> list[tuple[str, str]]:
        found = ask(f"{api}/flow_run_states/?flow_run_id={created['id']}")
        return [(state["name"], state["message"]) for state in found]

    wait(lambda: len(steps(run)) > 2, log)
    ask(f"{address}/set_state", {"state": {"type": "CANCELLING"}})
    # The worker's, once the process has ended, and the one with the run's message in place of the worker's.
    wait(lambda: [name for name, _ in states()].count("Cancelled") == 2, log)
    state = ask(address)["state"]
    said = re.fullmatch(r"cancelled at step ([\d,]+) of 100,000; Retry continues from there", state["message"])
    assert state["name"] == "Cancelled" and said, state
    done = int(said[1].replace(",", ""))
    assert done == len(steps(run))
    assert_saved_where_it_was(run)
    logged = [
        line["message"] for line in ask(f"{api}/logs/filter", {"logs": {"flow_run_id": {"any_": [created["id"]]}}})
    ]
    assert not any("Crash" in line or "Traceback" in line for line in logged)
    assert any(line == f"Finished in state Cancelling({state['message']!r})" for line in logged)

    ask(f"{address}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True})
    wait(lambda: len(steps(run)) > done, log)
    ask(f"{address}/set_state", {"state": {"type": "CANCELLING"}})
    wait(lambda: states()[-1][0] == "Cancelled", log)
    assert steps(run) == list(range(1, len(steps(run)) + 1))  # none is lost, none done twice


def test_ctrl_c_saves_training_and_the_next_up_resumes_it(up: Up, demo_tokens: Path) -> None:
    api, log = up.environment["PREFECT_API_URL"], up.log
    run = log.parent / "runs" / "stopped"
    parameters = ["model=debug", "device=cpu", "batch_size=1", "segment_seconds=1"]
    parameters += ["gradient_accumulation_steps=1", "num_epochs=10000", "full_models=none"]
    parameters += [f"tokens={demo_tokens}", f"run_dir={run}"]
    arguments = [argument for parameter in parameters for argument in ("-p", parameter)]
    subprocess.run(command("run", "train-lora", *arguments), cwd=ROOT, env=up.environment, check=True, timeout=240)
    wait(lambda: bool(steps(run)), log)
    wait(lambda: is_healthy(api), log)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=240) == 0
    assert "Stopped." in log.read_text()
    before = steps(run)
    assert_saved_where_it_was(run)
    assert not (run / ".lock").exists()
    assert not is_healthy(api)
    assert not list(processes_of(up.environment["PREFECT_HOME"]))

    port = api.removesuffix("/api").rpartition(":")[2]
    with start_up(up.environment, log.with_name("next.log"), "--port", port, "--workers", "1") as again:
        wait(lambda: len(steps(run)) > len(before), again.log)
        [training] = ask(f"{api}/flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Running"]}}}})
        assert (training["parameters"]["run_dir"], training["run_count"]) == (str(run), 2)
    after = steps(run)
    assert after == list(range(1, len(after) + 1))  # none is lost, none done twice
    assert not list(processes_of(up.environment["PREFECT_HOME"]))

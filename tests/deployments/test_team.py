"""The team's set-up at work: a server on PostgreSQL with a password, a bucket, and workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from bench.load import complaints
from bench.servers import Postgres, find_postgres, free_port, prefect_server, temporary_postgres
from deployments.environment import ROOT
from deployments.registering import DEPLOYMENTS, read_automations
from deployments.team.worker import RUN_SECONDS

AUTH = "musicgen:not-a-secret"
STORAGE = "gs://team/musicgen"


@dataclass(frozen=True)
class Team:
    """A team's server, and the environment of its clients and workers."""

    api: str
    environment: dict[str, str]
    folder: Path
    postgres: Postgres
    bucket: Any  # a file system of fsspec

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Call the API and return its answer."""
        answer = httpx.request(method, f"{self.api}{path}", auth=tuple(AUTH.split(":")), timeout=60, json=body or None)  # type: ignore[arg-type]
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start(self, deployment: str, **parameters: Any) -> str:
        found = self.ask("GET", f"/deployments/name/{deployment}/{deployment}")
        state = {"type": "SCHEDULED"}
        run = self.ask("POST", f"/deployments/{found['id']}/create_flow_run", parameters=parameters, state=state)
        return str(run["id"])

    def wait_for(self, run: str, *states: str, seconds: float = 400) -> None:
        def shown() -> str:
            return str(self.ask("GET", f"/flow_runs/{run}")["state"]["name"])

        wait(lambda: shown() in states, f"{states} instead of {shown()}", seconds)

    def states(self, run: str) -> list[str]:
        return [state["name"] for state in self.ask("GET", f"/flow_run_states/?flow_run_id={run}")]

    @contextmanager
    def worker(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker as its unit starts and stops it, on a machine of its own as far as Prefect's files go."""
        home = self.folder / f"home-{uuid4()}"
        environment = {**self.environment, "PREFECT_HOME": str(home), "PREFECT_WORKER_QUERY_SECONDS": "2"}
        with open(self.folder / "workers.log", "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "deployments.team.worker", name],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=RUN_SECONDS + 240)
            deadline = time.monotonic() + 30
            while (with_group_left := _lives(process.pid)) and time.monotonic() < deadline:
                time.sleep(0.1)
            if with_group_left:
                os.killpg(process.pid, signal.SIGKILL)
            assert not with_group_left, "something of the worker's lived on"


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait(condition: Callable[[], bool], what: str, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.5)


@pytest.fixture(scope="module")
def bucket() -> Iterator[tuple[str, Any]]:
    """Yield the address of an emulated Google Cloud Storage with the bucket `team`, and a file system on it."""
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    from gcsfs.core import GCSFileSystem  # not the one that first asks, for a minute, what kind of bucket it is

    port = free_port()
    server = emulator.create_server("127.0.0.1", port, in_memory=True)
    server.start()
    address = f"http://127.0.0.1:{port}"
    try:
        files = GCSFileSystem(endpoint_url=address, token="anon", use_listings_cache=False)
        files.mkdir("team")
        yield address, files
    finally:
        server.stop()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory, bucket: tuple[str, Any]) -> Iterator[Team]:
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    folder = tmp_path_factory.mktemp("team")
    cluster = Path("/tmp") / f"postgres-{uuid4().hex[:8]}"  # where PostgreSQL's own user may go, and short
    address, files = bucket
    try:
        with temporary_postgres(cluster) as postgres:
            settings = {
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": postgres.url,
                "PREFECT_SERVER_API_AUTH_STRING": AUTH,
            }
            with prefect_server(folder / "server", settings) as api:
                environment = {
                    **os.environ,
                    "PREFECT_API_URL": api,
                    "PREFECT_API_AUTH_STRING": AUTH,
                    "PREFECT_HOME": str(folder / "client"),
                    "STORAGE_EMULATOR_HOST": address,
                    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
                }
                register(environment, STORAGE)
                yield Team(api, environment, folder, postgres, files)
    finally:
        shutil.rmtree(cluster, ignore_errors=True)


def register(environment: dict[str, str], *storage: str) -> None:
    line = [sys.executable, "-m", "deployments.team.register", *storage]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_who_has_no_password_is_refused(team: Team) -> None:
    for path in ("/deployments/filter", "/variables/filter", "/block_documents/filter"):
        assert httpx.post(f"{team.api}{path}", json={}, timeout=60).status_code == 401
        guessed = httpx.post(f"{team.api}{path}", json={}, auth=("musicgen", "guessed"), timeout=60)
        assert guessed.status_code == 401
    stranger = {name: value for name, value in team.environment.items() if name != "PREFECT_API_AUTH_STRING"}
    line = [sys.executable, "-m", "prefect", "deployment", "run", "train-lora/train-lora"]
    done = subprocess.run(line, cwd=ROOT, env=stranger, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "401" in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_registering_again_keeps_everything_that_people_set(team: Team) -> None:
    def shown() -> dict[str, Any]:
        return {
            "automations": sorted(found["id"] for found in team.ask("POST", "/automations/filter")),
            "deployments": sorted(found["id"] for found in team.ask("POST", "/deployments/filter")),
            "places": {found["name"]: found["value"] for found in team.ask("POST", "/variables/filter")},
            "results": team.ask("GET", "/admin/storage")["default_result_storage_block_id"],
        }

    variable = team.ask("GET", "/variables/name/musicgen_output")
    assert variable["value"] == f"{STORAGE}/music"
    team.ask("PATCH", f"/variables/{variable['id']}", value="gs://other/music")
    before = shown()
    assert len(before["automations"]) == len(read_automations()) and len(before["deployments"]) == len(DEPLOYMENTS)
    assert before["results"] is not None
    register(team.environment, STORAGE)
    register(team.environment)
    assert shown() == before


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_retry_on_another_machine_repeats_only_what_failed(team: Team, demo_archives: Path) -> None:
    archives = f"{STORAGE}/archives".removeprefix("gs://")
    good, broken = sorted(demo_archives.glob("*.zip"))
    team.bucket.pipe(f"{archives}/{good.name}", good.read_bytes())
    team.bucket.pipe(f"{archives}/{broken.name}", b"no archive")
    with team.worker("tokenizing:none"):
        run = team.start("tokenize-archives", model="debug", device="cpu")
        team.wait_for(run, "Failed")
    assert team.bucket.ls("team/musicgen/results")
    team.bucket.pipe(f"{archives}/{broken.name}", broken.read_bytes())
    with team.worker("tokenizing:none"):
        team.ask("POST", f"/flow_runs/{run}/set_state", state={"type": "SCHEDULED", "name": "AwaitingRetry"})
        team.wait_for(run, "Completed")

    def of_retry() -> dict[str, str]:
        found = team.ask("POST", "/task_runs/filter", flow_runs={"id": {"any_": [run]}})
        return {task["name"]: task["state"]["name"] for task in found if task["flow_run_run_count"] == 2}

    # The server records the results of task runs with a delay.
    expected = {f"tokenize-{good.stem}": "Cached", f"tokenize-{broken.stem}": "Completed"}
    wait(lambda: of_retry() == expected, f"{expected} instead of {of_retry()}")
    assert team.bucket.exists(f"team/musicgen/tokens/{broken.stem}.json")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_stopping_a_worker_saves_its_run_and_reports_it_at_once(team: Team, demo_archives: Path) -> None:
    for name in [f"archive_batch_{number:04}" for number in (1, 2)]:
        assert team.bucket.exists(f"team/musicgen/tokens/{name}.json")
    quick = {"batch_size": 1, "gradient_accumulation_steps": 1, "segment_seconds": 1.0, "full_models": "none"}
    run_dir = f"{STORAGE}/runs/stopped"
    with team.worker("default:none") as worker:
        run = team.start(
            "train-lora", model="debug", device="cpu", run_dir=run_dir, max_steps=10_000, num_epochs=10_000, **quick
        )
        metrics = f"{run_dir}/metrics.jsonl"
        team.wait_for(run, "Running")
        wait(lambda: team.bucket.exists(metrics), "the first checkpoint")
        stopped = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=RUN_SECONDS + 240) == 0
        assert time.monotonic() - stopped < RUN_SECONDS  # it ended as it had saved, and not as the patience did
    assert "Crashed" in team.states(run)  # by the run itself: no heartbeat has been missed yet
    last = json.loads(team.bucket.cat(metrics).splitlines()[-1])["step"]
    with team.worker("default:none"):
        wait(lambda: team.states(run).count("Running") == 2, "the run's restart by the automation")
        wait(lambda: json.loads(team.bucket.cat(metrics).splitlines()[-1])["step"] > last, "a later checkpoint")
        steps = [json.loads(line)["step"] for line in team.bucket.cat(metrics).splitlines()]
        team.ask("POST", f"/flow_runs/{run}/set_state", state={"type": "CANCELLING"})
        team.wait_for(run, "Cancelled")
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_load_test_reports_errors_of_postgres(team: Team) -> None:
    log = team.postgres.folder / "postgres.log"
    before = complaints(log.read_text())
    sql = "create table held (); begin; lock held; \\! psql -Xd prefect -c 'set lock_timeout=1; lock held'"
    team.postgres.run("psql", "-X", "-d", "prefect", given=sql)
    after = complaints(log.read_text())
    for complaint in ("ERROR:", "lock timeout"):
        assert len(after.get(complaint, [])) == len(before.get(complaint, [])) + 1


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_restored_backup_has_every_run(team: Team) -> None:
    postgres, backup = team.postgres, str(team.postgres.folder / "backup.dump")
    postgres.run("pg_dump", "--format=custom", f"--file={backup}", "prefect")
    postgres.run("createdb", "--owner=prefect", "restored")
    postgres.run("pg_restore", "--dbname=restored", "--exit-on-error", backup)
    counts = [
        postgres.run("psql", "-X", "-At", "-d", database, "-c", "select count(*) from flow_run").strip()
        for database in ("prefect", "restored")
    ]
    assert counts[0] == counts[1] != "0"

"""Training runs whose process, worker, both, or server go away, on a real server with real workers.

Every run ends with the adapter of an uninterrupted run, bit for bit. Prints a table of each event, the states on the
server and the lost work; MUSICGEN_CRASH_WALK=FILE keeps it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import AwaitingRetry, Cancelling

from bench.servers import free_port
from deployments.environment import DEFAULTS, ROOT
from deployments.registering import ensure_automations, read_automations, register
from deployments.up import restart_missed
from tests.deployments.restartable_site import STEPS, RestartableSite, Training, wait
from tests.run_directories import assert_saved_where_it_was

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]  # starting a server takes minutes on a busy machine
TITLES = [("event", "what the server shows", "lost"), ("---", "---", "---")]
RESTART_SECONDS = 15  # as deployments/automations.yaml has it
SILENT_SECONDS, STUCK_SECONDS = 90, 30  # instead of 600 and 300; of heartbeats there is one in 30 s


def shortened() -> list[dict[str, Any]]:
    automations = read_automations()
    for automation in automations:
        trigger = automation["trigger"]
        trigger["within"] = {600: SILENT_SECONDS, 300: STUCK_SECONDS}.get(trigger["within"], trigger["within"])
    return automations


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, demo_tokens: Path) -> Iterator[RestartableSite]:
    folder = tmp_path_factory.mktemp("walk")
    site = RestartableSite(folder, free_port(), demo_tokens)
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in {
            **DEFAULTS,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": site.api,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PYTHONPATH": str(ROOT),
        }.items():
            patch.setenv(name, value)
        stack.enter_context(temporary_settings({PREFECT_API_URL: site.api, PREFECT_CLIENT_MAX_RETRIES: 20}))
        stack.callback(site.stop)
        site.start_server()
        site.client = stack.enter_context(get_client(sync_client=True))
        register()
        ensure_automations(site.client, shortened())
        site.start_worker()
        yield site
        table = "\n".join(f"| {' | '.join(row)} |" for row in [*TITLES, *site.rows])
        print(f"\n{table}")
        if kept := os.environ.get("MUSICGEN_CRASH_WALK"):
            Path(kept).write_text(table + "\n")


@pytest.fixture(scope="module")
def undisturbed(site: RestartableSite) -> dict[str, torch.Tensor]:
    training = site.train("undisturbed")
    training.wait_until("Completed")
    assert training.history() == ["Submitting", "Running", "Completed"]
    return training.adapter()


def check_whole(training: Training, undisturbed: dict[str, torch.Tensor], event: str, lost: str) -> None:
    """Expect each step once, no lock left and the same adapter, and add a row to the table."""
    assert training.steps() == list(range(1, STEPS + 1))
    assert not (training.directory / ".lock").exists()
    adapter = training.adapter()
    assert adapter.keys() == undisturbed.keys()
    assert all(torch.equal(adapter[name], undisturbed[name]) for name in undisturbed)
    training.site.rows.append((event, " → ".join(training.history()), lost))


RESTARTED = ["Submitting", "Running", "Crashed", "AwaitingRetry", "Submitting", "Running", "Completed"]


def test_a_killed_run_is_restarted_and_resumes(site: RestartableSite, undisturbed: dict[str, torch.Tensor]) -> None:
    training = site.train("flow-killed")
    training.wait_for_steps()
    training.process().kill()
    training.wait_until("AwaitingRetry")
    lost = training.redone()
    training.wait_until("Completed")
    assert training.history() == RESTARTED
    check_whole(training, undisturbed, "run killed (SIGKILL)", lost)


def test_a_run_stops_with_its_worker_and_resumes_under_the_next(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor]
) -> None:
    training = site.train("worker-killed")
    training.wait_for_steps()
    run = training.process()
    site.worker.kill()
    run.wait(timeout=30)  # it is asked to stop, saves, and reports it
    training.wait_until("AwaitingRetry")
    lost = training.redone()
    assert_saved_where_it_was(training.directory)
    site.replace_worker()
    training.wait_until("Completed")
    assert training.history() == RESTARTED
    check_whole(training, undisturbed, "worker killed (SIGKILL)", lost)


def test_a_run_whose_machine_is_lost_resumes_elsewhere(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor]
) -> None:
    training = site.train("both-killed")
    training.wait_for_steps()
    training.process().kill()
    site.worker.kill()
    silent = time.monotonic()
    lost = training.redone()
    site.replace_worker()
    assert training.state() == "Running"
    training.wait_until("Crashed", "AwaitingRetry")
    silence = time.monotonic() - silent
    training.wait_until("Completed")
    assert training.history() == RESTARTED
    event = f"run and worker killed at once; found out after {silence:.0f} s"
    check_whole(training, undisturbed, event, lost)


def test_a_cancelled_run_saves_and_resumes_only_at_a_manual_retry(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor]
) -> None:
    training = site.train("cancelled")
    training.wait_for_steps()
    run = training.process()
    group = os.getpgid(run.pid)
    site.client.set_flow_run_state(training.created.id, Cancelling())  # as the UI's button does
    training.wait_until("Cancelled")
    assert not run.is_running()
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    lost = training.redone()
    assert_saved_where_it_was(training.directory)
    time.sleep(SILENT_SECONDS + 25)  # long enough for the automations
    # The second Cancelled has the run's message in place of the worker's.
    assert training.history() == ["Submitting", "Running", "Cancelling", "Cancelled", "Cancelled"]
    state = training.run.state
    assert state is not None
    assert re.fullmatch(rf"cancelled at step \d+ of {STEPS}; Retry continues from there", str(state.message))
    site.client.set_flow_run_state(training.created.id, AwaitingRetry())
    training.wait_until("Completed")
    check_whole(training, undisturbed, "cancelled in the UI, then Retry", lost)


def test_a_run_whose_worker_stopped_during_its_start_completes(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor]
) -> None:
    training = site.train("worker-stopped")
    training.wait_until("Submitting")
    stopped = site.worker
    stopped.send_signal(signal.SIGTERM)
    site.start_worker()
    training.wait_until("Completed")
    assert stopped.wait(timeout=60) == 0
    check_whole(training, undisturbed, "worker stopped (SIGTERM) while a run starts", "nothing")


def test_a_run_that_never_started_is_taken_by_another_worker(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor]
) -> None:
    training = site.train("stuck")
    training.wait_until("Submitting")
    wait(lambda: bool(psutil.Process(site.worker.pid).children()), "the run's process")
    for process in [*psutil.Process(site.worker.pid).children(recursive=True), site.worker]:
        process.kill()
    site.replace_worker()
    training.wait_until("Completed")
    assert training.history() == ["Submitting", "AwaitingRetry", "Submitting", "Running", "Completed"]
    check_whole(training, undisturbed, "worker and run killed while the run starts", "nothing")


def test_a_run_continues_while_the_server_is_down(site: RestartableSite, undisturbed: dict[str, torch.Tensor]) -> None:
    training = site.train("server-restarted")
    training.wait_for_steps()
    site.server.terminate()
    site.server.wait(timeout=60)
    away = len(training.steps())
    wait(lambda: len(training.steps()) >= min(away + 5, STEPS), "steps without a server")
    site.start_server()
    training.wait_until("Completed")
    assert training.history() == ["Submitting", "Running", "Completed"]
    check_whole(training, undisturbed, "server stopped and started again", "nothing")


def test_a_run_that_died_with_its_server_resumes_with_the_server(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor]
) -> None:
    training = site.train("all-killed")
    training.wait_for_steps()
    for process in (site.server, training.process(), site.worker):  # as a power cut does
        process.kill()
    site.server.wait(timeout=60)
    lost = training.redone()
    time.sleep(SILENT_SECONDS + 15)  # away for longer than a silence may be
    site.start_server()
    site.replace_worker()
    training.wait_until("Crashed", "AwaitingRetry")

    def starts_again() -> bool:
        restart_missed(site.client, timedelta(seconds=2 * RESTART_SECONDS))  # as `up` does
        return training.state() != "Crashed"

    wait(starts_again, "its restart")
    training.wait_until("Completed")
    assert training.history() == RESTARTED
    event = "server, run and worker killed at once; server started again a minute later"
    check_whole(training, undisturbed, event, lost)


def test_a_finetune_killed_in_training_does_only_the_rest(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor], demo_archives: Path
) -> None:
    archives = site.folder / "archives"
    archives.mkdir()
    for archive in demo_archives.glob("*.zip"):  # without metadata.jsonl, as the shards of the others were made
        shutil.copy(archive, archives)
    job = site.finetune("finetune-killed", archives)
    job.wait_for_steps()
    shards = {path: path.stat().st_mtime_ns for path in (site.folder / "finetune-killed" / "tokens").iterdir()}
    job.process().kill()
    job.wait_until("AwaitingRetry")
    lost = job.redone()
    job.wait_until("Completed")
    assert job.history() == RESTARTED
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert (site.folder / "finetune-killed" / "music" / "generated_000.wav").exists()
    check_whole(job, undisturbed, "finetune killed (SIGKILL) in its training", lost)


def test_a_crashing_run_is_restarted_at_most_three_times(
    site: RestartableSite, undisturbed: dict[str, torch.Tensor]
) -> None:
    training = site.train("cursed")

    def has_begun(times: int) -> bool:
        restart_missed(site.client)  # as `up` does: of three crashes a busy server may lose the event of one
        return training.history().count("Running") == times

    for crash in range(1, 5):
        wait(lambda crash=crash: has_begun(crash), f"start {crash}")  # type: ignore[misc]
        training.process().kill()
        wait(lambda crash=crash: training.history().count("Crashed") == crash, f"crash {crash}")  # type: ignore[misc]
    time.sleep(RESTART_SECONDS + 20)  # long enough for the automation
    round_trip = ["Submitting", "Running", "Crashed", "AwaitingRetry"]
    assert training.history() == (4 * round_trip)[:-1]
    site.client.set_flow_run_state(training.created.id, AwaitingRetry())
    training.wait_until("Completed")
    check_whole(training, undisturbed, "run killed four times, then Retry", "nothing; begun again")

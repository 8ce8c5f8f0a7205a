"""Tokenizing on a Dask cluster of a scheduler and two workers, each in its own process."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import distributed
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from flows.runners import task_runner
from flows.tokenize_archives import tokenize_archives
from musicgen_core.demo_data import make_demo_archives
from musicgen_core.errors import ConfigError
from tests.flows.local_dask import Cluster, Worker, in_mid_work, started, wait_for, with_workers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def started_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster


@pytest.fixture
def lone_scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with started(tmp_path_factory.mktemp("lone")) as cluster:
        yield cluster


@pytest.fixture
def cluster(started_cluster: Cluster) -> Cluster:
    """Return the cluster with at least one worker."""
    return with_workers(started_cluster, 1)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    make_demo_archives(folder, archives=4, clips=16, seconds=1.0)
    return folder


def run(archives: Path | str, tokens: Path | str, cluster: Cluster | None = None) -> State[Any]:
    dask = {"task_runner": "dask", "dask_address": cluster.address} if cluster else {}
    return tokenize_archives(
        archives=str(archives), tokens=str(tokens), model="debug", device="cpu", return_state=True, **dask
    )


def task_runs(state: State[Any]) -> list[TaskRun]:
    with get_client(sync_client=True) as client:
        this_run = FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        return client.read_task_runs(flow_run_filter=this_run)


def wait_for_states(state: State[Any], expected: list[str]) -> None:
    """Wait until the server shows these states of the task runs, which workers report with a delay."""
    wait_for(lambda: sorted(each.state_name or "" for each in task_runs(state)) == expected)


@dataclass
class RunWithKilledWorker:
    """A run during which one worker was killed while writing a shard."""

    state: State[Any]
    tokens: Path
    worker: Worker


@pytest.fixture(scope="module")
def killed(started_cluster: Cluster, archives: Path, tmp_path_factory: pytest.TempPathFactory) -> RunWithKilledWorker:
    tokens = tmp_path_factory.mktemp("killed")
    two = with_workers(started_cluster, 2)
    with in_mid_work(two, lambda worker: worker.process.kill()) as struck:
        state = run(archives, tokens, two)
    return RunWithKilledWorker(state, tokens, struck[0])


def test_another_worker_tokenizes_the_archive_of_a_killed_one(
    killed: RunWithKilledWorker, archives: Path, tmp_path: Path
) -> None:
    assert killed.state.is_completed(), killed.state.message
    assert killed.worker.half_written  # killed before the shard was complete
    reports = killed.state.result().reports
    assert [report.clips for report in reports] == [16] * 4
    wait_for_states(killed.state, ["Completed"] * 4)

    assert run(archives, tmp_path).result().reports == reports  # in threads
    names = {f"archive_batch_000{number}.{suffix}" for number in (1, 2, 3, 4) for suffix in ("json", "parquet")}
    assert {path.name for path in killed.tokens.iterdir()} == {*names, "dataset.html"}
    for name in names:
        assert (killed.tokens / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_second_run_reuses_the_results_of_the_workers(
    killed: RunWithKilledWorker, cluster: Cluster, archives: Path
) -> None:
    again = run(archives, killed.tokens, cluster)
    assert again.is_completed()
    assert again.result().reports == killed.state.result().reports
    wait_for_states(again, ["Cached"] * 4)


def test_an_archive_failed_on_a_worker_is_reported_with_its_reason(
    cluster: Cluster, archives: Path, tmp_path: Path
) -> None:
    source = (archives / "archive_batch_0001.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(source[: len(source) // 2])
    in_threads = run(tmp_path / "cut.zip", tmp_path / "threads")
    over_dask = run(tmp_path / "cut.zip", tmp_path / "dask", cluster)
    assert over_dask.is_failed()
    assert str(over_dask.message).startswith(f"1 of 1 archive failed: {tmp_path}/cut.zip can't be read as a zip")
    assert over_dask.message == in_threads.message


def functions_of_main_thread() -> list[str]:
    """Return the functions on the main thread's stack, innermost first."""
    frame: FrameType | None = sys._current_frames()[threading.main_thread().ident or 0]
    found = []
    while frame is not None:
        found.append(frame.f_code.co_name)
        frame = frame.f_back
    return found


def test_a_cancelled_run_stops_its_workers(cluster: Cluster, tmp_path: Path) -> None:
    make_demo_archives(tmp_path / "archives", archives=4, clips=48, seconds=1.0)

    def interrupt(_: Worker) -> None:
        with distributed.Client(cluster.address, set_as_default=False) as client:
            wait_for(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) >= 4)
        wait_for(lambda: "_collect" in functions_of_main_thread())
        time.sleep(0.3)  # the run is now only waiting
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with in_mid_work(cluster, interrupt), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "archives", tmp_path / "tokens", cluster)
    wait_for(lambda: not any(worker.half_written for worker in cluster.workers))
    time.sleep(0.5)
    assert not any(worker.half_written for worker in cluster.workers)
    assert len(list((tmp_path / "tokens").glob("*.json"))) < 4  # one may have been finished before


def test_relative_paths_are_the_same_for_workers_elsewhere(
    cluster: Cluster, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(archives.parent)
    tokens = os.path.relpath(tmp_path / "tokens")
    state = run(f"{archives.name}/archive_batch_0001.zip", tokens, cluster)
    assert state.is_completed(), state.message
    assert (tmp_path / "tokens" / "archive_batch_0001.json").exists()


def test_a_directory_that_workers_do_not_share_is_refused_first(cluster: Cluster, archives: Path) -> None:
    state = run(archives, "memory://tokens-of-this-process", cluster)
    with pytest.raises(ConfigError, match=r"it doesn't see a file .* and the same memory://tokens-of-this-process"):
        state.result()
    assert task_runs(state) == []


def test_workers_without_our_code_are_named_before_tokenizing(
    lone_scheduler: Cluster, archives: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "tasks").mkdir(parents=True)
    (tmp_path / "elsewhere" / "tasks" / "__init__.py").touch()
    lone_scheduler.start_worker(PYTHONPATH=str(tmp_path / "elsewhere"))
    with distributed.Client(lone_scheduler.address, set_as_default=False) as client:
        client.wait_for_workers(1)
        [worker] = client.scheduler_info()["workers"]
    state = run(archives, tmp_path / "tokens", lone_scheduler)
    with pytest.raises(ConfigError, match=rf"{worker}: .*No module named 'tasks\.\w+'.* A worker needs .*Python 3"):
        state.result()
    with pytest.raises(ConfigError, match=r"is a Dask worker\. Give the address of its scheduler"):
        task_runner("dask", 1, worker, str(tmp_path))


def test_a_dead_scheduler_fails_the_run_instead_of_hanging(
    lone_scheduler: Cluster, archives: Path, tmp_path: Path
) -> None:
    def kill_when_busy() -> None:
        with distributed.Client(lone_scheduler.address, set_as_default=False) as client:
            wait_for(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 4)
            lone_scheduler.processes[0].kill()

    thread = threading.Thread(target=kill_when_busy)
    thread.start()
    state = run(archives, tmp_path / "tokens", lone_scheduler)
    thread.join()
    assert state.is_failed()
    assert f"4 of 4 archives failed: {archives}/archive_batch_0001.zip: " in str(state.message)
    assert "lost the connection to the scheduler" in str(state.message)

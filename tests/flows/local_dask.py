"""A Dask scheduler and workers on this machine, each in its own process, that can be killed at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


@dataclass
class Worker:
    """A Dask worker; its unfinished shards lie under `scratch`."""

    process: subprocess.Popen[bytes]
    scratch: Path

    @property
    def half_written(self) -> list[Path]:
        return list(self.scratch.glob("musicgen-*/*.parquet"))

    def is_caught_in_mid_work(self) -> bool:
        """Pause the worker if it is writing a shard; return whether it is. Otherwise a fast one may finish first."""
        if not self.half_written or self.process.poll() is not None:
            return False
        self.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(self.process.pid).status() == psutil.STATUS_STOPPED)
        if self.half_written:
            return True
        self.process.send_signal(signal.SIGCONT)
        return False


@dataclass
class Cluster:
    folder: Path
    workers: list[Worker] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(json.loads((self.folder / "scheduler.json").read_text())["address"])

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        # Without Prefect's settings, which workers receive with each task.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        file = str(self.folder / "scheduler.json")
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command, "--scheduler-file", file, "--no-dashboard"],
                env=kept | environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def start_worker(self, **environment: str) -> Worker:
        scratch = self.folder / f"worker-{len(self.processes)}"
        scratch.mkdir()
        process = self.start("worker", "--no-nanny", "--nthreads", "1", TMPDIR=str(scratch), **environment)
        self.workers.append(Worker(process, scratch))
        return self.workers[-1]


@contextmanager
def started(folder: Path) -> Iterator[Cluster]:
    """Start a scheduler without workers."""
    cluster = Cluster(folder)
    try:
        cluster.start("scheduler", "--port", "0", "--host", "127.0.0.1")
        file = folder / "scheduler.json"
        wait_for(lambda: file.exists() and file.read_text().endswith("}"))  # written in place, so it may be incomplete
        yield cluster
    finally:
        for process in cluster.processes:
            process.kill()
            process.wait()


def with_workers(cluster: Cluster, at_least: int) -> Cluster:
    cluster.workers = [worker for worker in cluster.workers if worker.process.poll() is None]
    while len(cluster.workers) < at_least:
        cluster.start_worker()
    return cluster


def wait_for(condition: Callable[[], Any], seconds: float = 240.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
    return found


@contextmanager
def in_mid_work(cluster: Cluster, then: Callable[[Worker], None]) -> Iterator[list[Worker]]:
    """During the block, call `then` once a worker is writing a shard; yield a list that receives the worker.

    The worker is paused until `then` returns.
    """
    struck: list[Worker] = []

    def strike() -> None:
        worker = wait_for(lambda: next((each for each in cluster.workers if each.is_caught_in_mid_work()), None))
        try:
            then(worker)
        finally:
            worker.process.send_signal(signal.SIGCONT)
        struck.append(worker)

    thread = threading.Thread(target=strike)
    thread.start()
    yield struck
    thread.join()

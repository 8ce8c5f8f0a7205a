"""A running `musicgen-flows up`, its deployments, its server's API and its processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.environment import ROOT


@dataclass(frozen=True)
class Up:
    """A running `musicgen-flows up`, the environment of its clients, and its output so far."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    log: Path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "deployments.cli", *arguments]


@contextmanager
def start_up(environment: dict[str, str], log: Path, *arguments: str) -> Iterator[Up]:
    own = {name: value for name, value in environment.items() if name != "PREFECT_API_URL"}  # as a user starts it
    with open(log, "wb") as output:
        process = subprocess.Popen(command("up", *arguments), cwd=ROOT, env=own, stdout=output, stderr=output)
    try:
        workers = int(arguments[arguments.index("--workers") + 1]) + 1
        deadline = time.monotonic() + 400
        while log.read_text().count("is ready") < workers:  # the workers' own last word
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield Up(process, environment, log)
    finally:
        process.terminate()  # not SIGKILL: its server and worker would live on
        process.wait(timeout=240)


def run_deployment(up: Up, name: str, *parameters: str) -> subprocess.CompletedProcess[str]:
    arguments = [argument for parameter in parameters for argument in ("-p", parameter)]
    return subprocess.run(
        command("run", name, *arguments, "--watch"),
        cwd=ROOT,
        env=up.environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def wait(holds: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 400
    while not holds():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


def ask(address: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"}, method=method)
    for _ in range(10):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            if error.code != 503:  # SQLite was locked: the client is to try again
                raise
            time.sleep(1)
    raise AssertionError(f"{address} is not available")


def processes_of(prefect_home: str) -> Iterator[str]:
    """Command lines of live processes whose environment has this PREFECT_HOME (Linux)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PREFECT_HOME={prefect_home}\0".encode() in (folder / "environ").read_bytes():
                yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile, or not ours to read
            continue

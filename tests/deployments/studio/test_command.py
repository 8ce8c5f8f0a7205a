"""`musicgen-flows studio` as a process: from its start to Ctrl-C, and what stops it before."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

from bench.servers import ROOT, free_port


def started(folder: Path, port: int, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deployments.cli", "studio", "--output", str(folder), "--port", str(port)]
    environment = {**os.environ, "PREFECT_HOME": str(folder.parent / "prefect"), "NO_COLOR": "1"}
    return subprocess.Popen(
        [*command, "--runs", str(folder.parent / "runs"), *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_it_serves_until_it_is_stopped(tmp_path: Path) -> None:
    port = free_port()
    process = started(tmp_path / "music", port, "--model", "debug", "--device", "cpu")
    try:
        assert process.stdout is not None
        lines = []
        while not any(f"http://127.0.0.1:{port}/" in line for line in lines):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        state = httpx.get(f"http://127.0.0.1:{port}/api/state").json()
        assert (state["is_ready"], state["model"], state["device"]) == (True, "debug", "cpu")
        assert httpx.get(f"http://127.0.0.1:{port}/health").text == "musicgen-flows: studio"
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=240)
    assert process.returncode == 0 and "Stopped." in rest


def test_a_taken_port_and_a_missing_model_end_it_with_a_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = started(tmp_path / "music", port, "--model", "debug")
        said, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and f"error: port {port} can't be had" in said
    process = started(tmp_path / "music", free_port(), "--model", str(tmp_path / "none"))
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and "error: " in said and "none" in said

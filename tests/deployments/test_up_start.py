"""The start of `up`: its output in the terminal, its ports, and the address of an `up` that runs already."""

from __future__ import annotations

import io
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prefect.client.orchestration import get_client

from deployments import up
from deployments.console import output
from deployments.parameters import UpParameters
from deployments.up import _host_of_running
from musicgen_core.errors import MusicgenError

SERVER = """#!/bin/sh
echo "Configure Prefect to communicate with the server with: prefect config set PREFECT_API_URL=http://…"
echo '{"msg": "the scheduler failed", "args": []}' >&2
exec sleep 600
"""


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "is_quiet", lambda: True)


def test_the_servers_banner_is_not_shown_and_its_errors_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = tmp_path / "python"
    server.write_text(SERVER)
    server.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(server))
    answers = iter([False, True])
    monkeypatch.setattr(up, "is_healthy", lambda api: next(answers))
    shown = io.StringIO()
    monkeypatch.setattr(output, "_file", shown)
    with up._server("http://127.0.0.1:1/api", "127.0.0.1", 1):
        deadline = time.monotonic() + 120
        while "the scheduler failed" not in shown.getvalue() and time.monotonic() < deadline:
            time.sleep(0.05)
    assert "Prefect server: the scheduler failed" in shown.getvalue()
    assert "PREFECT_API_URL" not in shown.getvalue() + capfd.readouterr().out


def test_a_server_that_refuses_to_start_says_why() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = pytest.raises(MusicgenError, match=f"did not start at .* \\(.*Port {port} is already in use")
        with refused, up._server(f"http://127.0.0.1:{port}/api", "127.0.0.1", port):
            pass


def test_up_continues_without_files_if_their_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = UpParameters(port=1, files_port=port)
        with up._files(options, "http://127.0.0.1:1/api", "http://127.0.0.1:1") as files:
            assert files is None
    printed = capsys.readouterr().out
    assert f"port {port} can't be had" in printed and "--files-port PORT" in printed


@pytest.mark.parametrize(("port", "files_port"), [(4200, 4300), (4201, 4301), (65435, 65535), (65436, 65336)])
def test_files_have_a_port_that_the_ui_of_another_up_is_not_on(port: int, files_port: int) -> None:
    assert UpParameters(port=port).chosen_files_port == files_port
    assert UpParameters(port=port, files_port=5000).chosen_files_port == 5000


@pytest.mark.usefixtures("prefect_server")
def test_up_names_a_run_that_breaks_lists_with_what_deletes_it(capsys: pytest.CaptureFixture[str]) -> None:
    with get_client(sync_client=True) as client:
        flow = str(client.create_flow_from_name("lists"))
        run = client.request("POST", "/flow_runs/", json={"flow_id": flow, "parameters": {"limit": 10**20}}).json()
        try:
            up._warn_of_unlistable_runs()
        finally:
            client.delete_flow_run(run["id"])
    [line] = capsys.readouterr().out.splitlines()
    assert "can't list runs" in line and line.endswith(f"uv run prefect flow-run delete {run['id']}")
    up._warn_of_unlistable_runs()
    assert capsys.readouterr().out == ""


def test_a_second_up_finds_the_address_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect.settings.get_current_settings", lambda: SimpleNamespace(home=tmp_path))
    for host in ("10.0.0.5", "::"):  # one after the other: the second leaves nothing of the first's
        with _host_of_running(host, 4200) as first, _host_of_running("127.0.0.1", 4200) as second:
            assert (first, second) == (None, host)
            with _host_of_running("127.0.0.1", 4201) as at_another_port:
                assert at_another_port is None

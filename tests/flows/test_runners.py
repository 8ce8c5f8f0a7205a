from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows import runners
from flows.runners import call_everywhere, task_runner
from musicgen_core.errors import ConfigError


@pytest.fixture
def api_url() -> Iterator[None]:
    """Set a server's URL, which no test here contacts."""
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


@pytest.fixture
def silent_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


@pytest.fixture
def http_port() -> Iterator[int]:
    """Start a server that answers any request as web servers do."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        yield int(server.getsockname()[1])


def dask_error(address: str | None, tmp_path: Path) -> str:
    """Return the error for an address: one line, of this project's check, not Dask's, which takes 30 s."""
    with pytest.raises(ConfigError) as raised:
        task_runner("dask", 1, address, str(tmp_path))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_threads_are_as_many_as_asked_for(tmp_path: Path) -> None:
    runner = task_runner("threads", 3, None, str(tmp_path))
    assert isinstance(runner, ThreadPoolTaskRunner)
    assert runner._max_workers == 3


def test_an_address_without_dask_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task_runner is threads and dask_address is tcp://h:1\. To use .*give both"):
        task_runner("threads", 1, "tcp://h:1", str(tmp_path))


@pytest.mark.parametrize("address", [None, ""])
def test_dask_without_an_address_is_refused(address: str | None, tmp_path: Path) -> None:
    assert "task_runner is dask and dask_address is not given" in dask_error(address, tmp_path)


def test_a_missing_prefect_dask_names_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "prefect_dask", None)
    assert dask_error("tcp://h:1", tmp_path).startswith("prefect-dask is not installed. Install it: ")


def test_dask_without_a_lasting_prefect_server_is_refused(tmp_path: Path) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert "needs a Prefect server that its workers can reach" in dask_error("tcp://127.0.0.1:9", tmp_path)


@pytest.mark.usefixtures("api_url")
def test_an_address_where_nothing_listens_fails_soon(
    silent_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert runners.ANSWER_SECONDS <= 5
    monkeypatch.setattr(runners, "ANSWER_SECONDS", 0.5)
    for address in ("tcp://127.0.0.1:9", f"tcp://127.0.0.1:{silent_port}"):
        assert dask_error(address, tmp_path).startswith(f"no Dask scheduler at {address}: no answer in 0.5 s. Start")


@pytest.mark.usefixtures("api_url")
def test_a_server_other_than_a_dask_scheduler_is_refused(http_port: int, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{http_port}"
    assert dask_error(address, tmp_path).startswith(f"no Dask scheduler at {address}: ")


@pytest.mark.usefixtures("api_url")
@pytest.mark.parametrize("address", ["nonsense", "http://h:8786", "tcp://127.0.0.1", "tcp://127.0.0.1:80x", "tcp://"])
def test_an_invalid_address_is_refused(address: str, tmp_path: Path) -> None:
    assert dask_error(address, tmp_path).startswith(f"no Dask scheduler at {address}: ")


def test_threads_call_a_function_everywhere_only_once(tmp_path: Path) -> None:
    called: list[int] = []
    with task_runner("threads", 2, None, str(tmp_path)) as runner:
        call_everywhere(runner, called.append, 5)
    assert called == [5]

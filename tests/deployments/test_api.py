"""A configured Prefect API is checked before any work, and a server that does not start says why."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import prefect
import pytest
from alembic.script import ScriptDirectory
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_API_URL, temporary_settings

from deployments.api import check_api, check_database, ensure_api, explain_server, known_revisions
from deployments.up import _server
from musicgen_core.errors import MusicgenError


@pytest.fixture
def prefect_like() -> Iterator[str]:
    """Answers as Prefect does: the API under /api, and the UI's page at every other address."""

    class PrefectLike(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {"/api/health": b"true", "/api/admin/version": json.dumps("3.8.8").encode()}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.get(self.path, b"<!DOCTYPE html>"))

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), PrefectLike) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def problem_with(url: str) -> MusicgenError:
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(MusicgenError) as refused:
        check_api()
    return refused.value


def test_an_api_url_that_is_the_uis_is_refused_with_the_right_one(prefect_like: str) -> None:
    problem = problem_with(prefect_like)
    assert f"what answers at {prefect_like} is not Prefect's API" in problem.found
    assert problem.next_step == f"Name the API: export PREFECT_API_URL={prefect_like}/api"
    with temporary_settings({PREFECT_API_URL: f"{prefect_like}/api"}):
        check_api()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://no-such-host.invalid/api", "x:y"])
def test_an_address_without_a_server_is_named_at_once(url: str) -> None:
    assert url in problem_with(url).found


def test_the_last_error_in_a_servers_log_is_its_reason() -> None:
    log = "Traceback (most recent call last):\n  x\nsqlite3.OperationalError: disk I/O error\n\nExiting"
    assert "can't start: sqlite3.OperationalError: disk I/O error" in str(explain_server(log))
    assert "did not answer in time" in str(explain_server("")) and "run it again" in str(explain_server(""))


@contextlib.contextmanager
def database_at(revision: str, folder: Path) -> Iterator[None]:
    """Prefect's database has the schema of that revision; no API is configured."""
    with contextlib.closing(sqlite3.connect(folder / "prefect.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table alembic_version (version_num)")
        database.execute("insert into alembic_version values (?)", [revision])
        database.commit()
    url = f"sqlite+aiosqlite:///{folder}/prefect.db"
    with temporary_settings({PREFECT_API_DATABASE_CONNECTION_URL: url}, restore_defaults={PREFECT_API_URL}):
        yield


def test_a_newer_database_is_reported_before_a_server_starts(tmp_path: Path) -> None:
    with database_at("ffffffffffff", tmp_path):
        for start in (ensure_api, _server("http://127.0.0.1:9/api", "127.0.0.1", 9).__enter__):
            with pytest.raises(MusicgenError, match=f"database {tmp_path}/prefect.db belongs to a newer Prefect"):
                start()


def test_a_database_of_the_installed_prefect_passes(tmp_path: Path) -> None:
    with database_at(max(known_revisions()), tmp_path):
        check_database()
        (tmp_path / "prefect.db").write_bytes(b"no database")
        check_database()  # left to the server to report


def test_the_known_revisions_are_those_that_alembic_finds() -> None:
    migrations = prefect.__module_path__ / "server" / "database" / "_migrations"
    scripts = ScriptDirectory(str(migrations), version_locations=[str(migrations / "versions" / "sqlite")])
    assert known_revisions() == {script.revision for script in scripts.walk_revisions()}


@pytest.mark.slow
def test_a_database_of_a_newer_prefect_is_reported_as_such(tmp_path: Path) -> None:
    import subprocess
    import sys

    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "PREFECT_LOGGING_LEVEL": "ERROR"}
    subprocess.run(
        [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"], env=environment, check=True
    )
    with sqlite3.connect(tmp_path / "prefect.db") as database:
        database.execute("update alembic_version set version_num = 'ffffffffffff'")
    code = "import sys; from deployments.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", "out", "--model", "debug", "--prompt", "x"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "belongs to a newer Prefect" in done.stderr and str(tmp_path) in done.stderr

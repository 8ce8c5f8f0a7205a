from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, runtime, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry

from musicgen_core.escaping import markdown_code, markdown_text
from tasks import artifacts as artifacts_module
from tasks.artifacts import Artifacts, artifacts_of_run, markdown_table
from tests.fixture_types import Shown

pytestmark = pytest.mark.usefixtures("prefect_server")


def run_of(job: Any) -> UUID:
    """Run a flow; return the run's id."""
    run: UUID = job(return_state=True).state_details.flow_run_id
    return run


def test_the_last_artifact_of_a_task_belongs_to_its_flow_run(shown: Shown) -> None:
    @task
    def work() -> None:
        with artifacts_of_run() as artifacts:
            for number in range(101):
                artifacts.progress("test-progress", number, 200, f"number {number}")
            artifacts.table("test-table", [{"a": 1}], "a table")
            artifacts.markdown("test-page", lambda: "# a page", "")

    @flow
    def job() -> None:
        work()

    found = shown(run_of(job))
    assert (found["test-progress"].data, found["test-progress"].description) == (50.0, "number 100")
    assert (found["test-table"].type, found["test-table"].data) == ("table", '[{"a": 1}]')
    assert (found["test-page"].type, found["test-page"].data) == ("markdown", "# a page")


def test_a_retry_updates_artifacts_and_another_run_adds_versions(shown: Shown) -> None:
    @task
    def work(attempt: int) -> None:
        with artifacts_of_run() as artifacts:
            artifacts.markdown("test-versions", lambda: f"attempt {attempt}", "")
        assert attempt > 1, "broken"

    @flow
    def job() -> None:
        work(runtime.flow_run.run_count)

    run_id = run_of(job)
    assert shown(run_id)["test-versions"].data == "attempt 1"
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, AwaitingRetry(), force=True)  # what the Retry button does
        again: Any = run_flow(job, flow_run=client.read_flow_run(run_id), return_type="state")
        assert again.is_completed()
        assert shown(run_id)["test-versions"].data == "attempt 2"  # which also holds that there is one
        job(return_state=True)
        versions = ArtifactFilter(key=ArtifactFilterKey(any_=["test-versions"]))
        assert len(client.read_artifacts(artifact_filter=versions)) == 2


def test_a_deleted_artifact_is_created_again(shown: Shown) -> None:
    @flow
    def job() -> None:
        run = UUID(runtime.flow_run.id)
        with artifacts_of_run() as artifacts:
            artifacts.progress("test-deleted", 1, 4, "")
            deadline = time.monotonic() + 120
            while "test-deleted" not in shown(run) and time.monotonic() < deadline:
                time.sleep(0.1)
            with get_client(sync_client=True) as client:
                client.delete_artifact(shown(run)["test-deleted"].id)
            artifacts.progress("test-deleted", 2, 4, "")

    assert shown(run_of(job))["test-deleted"].data == 50.0


def test_a_page_that_fails_affects_no_other_page(shown: Shown) -> None:
    def broken() -> str:
        raise ValueError("no such file")

    @flow
    def job() -> None:
        with artifacts_of_run() as artifacts:
            artifacts.markdown("test-broken", broken, "")
            artifacts.markdown("test-whole", lambda: "whole", "")

    assert set(shown(run_of(job))) == {"test-whole"}


class _Silent(BaseHTTPRequestHandler):
    """A server that accepts requests and never answers."""

    def do_GET(self) -> None:
        self.server.asked.set()  # type: ignore[attr-defined]
        self.server.over.wait(200)  # type: ignore[attr-defined]

    do_POST = do_PATCH = do_GET


@pytest.mark.parametrize("is_there", [True, False])
def test_an_unresponsive_server_does_not_delay_the_work(monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    monkeypatch.setattr(artifacts_module, "PATIENCE_SECONDS", 0.5)
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Silent)
    server.asked, server.over, server.daemon_threads = threading.Event(), threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/api"
    if not is_there:
        server.shutdown()
        server.server_close()
    with temporary_settings({PREFECT_API_URL: url}):
        started = time.monotonic()
        with artifacts_of_run() as artifacts:
            for number in range(10_000):
                artifacts.progress("test-away", number, 10_000, "")
            updated = time.monotonic()
            assert not is_there or server.asked.wait(120)
            waited = time.monotonic() - updated
        ended = time.monotonic()
    server.over.set()
    assert updated - started < 60.0  # any request would take 200 s
    assert ended - started - waited < 120.0
    if is_there:
        server.shutdown()
        server.server_close()


def test_an_update_replaces_an_unpublished_one(monkeypatch: pytest.MonkeyPatch) -> None:
    published: list[Any] = []
    begun, go_on = threading.Event(), threading.Event()

    def publish(self: Artifacts, key: str, content: Any, data: Any) -> bool:
        begun.set()
        go_on.wait(120)
        published.append(data)
        return True

    monkeypatch.setattr(Artifacts, "_publish", publish)
    with artifacts_of_run() as artifacts:
        artifacts.progress("a", 0, 100, "")
        assert begun.wait(120)
        for number in range(1, 100):
            artifacts.progress("a", number, 100, "")
        go_on.set()
    assert published == [0.0, 99.0]


def test_cells_hold_any_text_without_breaking_their_table() -> None:
    cells = [markdown_text("a | b\nc <img src=x> & d"), markdown_code("/data/a|b`c`.wav")]
    table = markdown_table(("one", "two"), [cells]).splitlines()
    assert table == [
        "| one | two |",
        "| --- | --- |",
        r"| a \| b c \<img src=x\> \& d | /data/a\|b\`c\`.wav |",
    ]

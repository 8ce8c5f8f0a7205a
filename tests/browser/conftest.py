"""A separate `musicgen-flows up` and a headless Chromium, for tests that click through the Prefect UI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import psutil
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, Route, TimeoutError, ViewportSize, expect, sync_playwright
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterParentFlowRunId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from bench.servers import free_port
from deployments.environment import ROOT
from musicgen_core.demo_data import make_demo_archives

PATIENCE_SECONDS = 400
"""For a run to come so far: its process starts, imports torch, and shares two cores with a browser."""
PAGE_SECONDS = 120
"""For a page to show what is there already."""
WINDOW: ViewportSize = {"width": 1200, "height": 900}
DEBUG = {"model": "debug", "device": "cpu"}
QUICK_TRAINING = {"batch_size": 1, "gradient_accumulation_steps": 1, "segment_seconds": 1.0}


@dataclass(frozen=True)
class Site:
    """A running `up`: its URL, its directories, and a client of its server."""

    url: str
    folder: Path
    client: SyncPrefectClient

    def start(self, deployment: str, **parameters: Any) -> UUID:
        """Start a run as a script would, and return its id."""
        found = self.client.read_deployment_by_name(f"{deployment}/{deployment}")
        return self.client.create_flow_run_from_deployment(found.id, parameters=DEBUG | parameters).id

    def run(self, run: UUID) -> FlowRun:
        return self.client.read_flow_run(run)

    def wait_until(self, holds: Callable[[], bool], what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"waited in vain: {what()}; {(self.folder / 'up.log').read_text()}"
            time.sleep(0.2)

    def wait_for(self, run: UUID, state: str) -> str:
        """Wait for a state of a run, and return its message."""
        self.wait_until(lambda: self.run(run).state_name == state, lambda: self.run(run).state)
        return str(self.run(run).state.message)

    def task_runs(self, run: UUID) -> list[TaskRun]:
        this_run, found = FlowRunFilter(id=FlowRunFilterId(any_=[run])), []
        while page := self.client.read_task_runs(flow_run_filter=this_run, limit=200, offset=len(found)):
            found += page
        return found

    def subflows(self, run: UUID) -> list[FlowRun]:
        of_run = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
        return self.client.read_flow_runs(flow_run_filter=of_run)

    def is_put_away(self, run: UUID) -> bool:
        """Return whether the run's worker has cleaned up an attempt of it."""
        event = {
            "event": {"name": ["prefect.worker.executed-flow-run"]},
            "related": {"id": [f"prefect.flow-run.{run}"]},
        }
        found = self.client.request("POST", "/events/filter", json={"filter": event}).json()
        return bool(found["events"])

    def process(self, run: UUID) -> psutil.Process:
        """Return the process of a flow run itself: neither its worker nor a child."""
        found = [process for process in psutil.process_iter() if _flow_run(process) == str(run)]
        return min(found, key=psutil.Process.create_time)


def _flow_run(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("PREFECT__FLOW_RUN_ID")
    except psutil.Error:
        return None


def _again_while_locked(route: Route) -> None:
    """Retry on 503, which a server on SQLite returns now and then. Prefect's own clients and people retry, too."""
    answer = route.fetch()
    for _ in range(10):
        if answer.status != 503:
            break
        time.sleep(1)
        answer = route.fetch()
    route.fulfill(response=answer)


class Ui:
    """Actions of a person in the pages of a site."""

    def __init__(self, page: Page, site: Site, screenshots: Path) -> None:
        self.page = page
        self._site = site
        self.screenshots = screenshots

    def open(self, path: str) -> None:
        self.page.goto(f"{self._site.url}/{path}")

    def screenshot(self, name: str, height: int = WINDOW["height"]) -> None:
        """Save the window, after all loading has ended, as a PNG with few enough colours for a README.

        Args:
            height: temporary height of the window, for a page that is longer than others.
        """
        self.page.set_viewport_size({**WINDOW, "height": height})
        self.page.wait_for_load_state("networkidle")
        file = self.screenshots / f"{name}.png"
        self.page.screenshot(path=file, animations="disabled")
        self.page.set_viewport_size(WINDOW)
        Image.open(file).convert("RGB").quantize(128).save(file, optimize=True)

    def open_deployment(self, name: str) -> None:
        self.open("deployments")
        self.page.get_by_role("link", name=name).first.click()
        expect(self.page.get_by_text("Schedules", exact=True)).to_be_visible()

    def open_run_form(self, deployment: str) -> None:
        self.open_deployment(deployment)
        self.page.get_by_role("button", name="Run", exact=True).click()
        self.page.get_by_text("Custom run").click()
        expect(self.page.get_by_role("heading", name="Parameters")).to_be_visible()

    def parameter(self, name: str) -> Locator:
        """Return a parameter's part of the run form: label, description and fields."""
        label = self.page.get_by_text(re.compile(rf"^{name}( \(Optional\))?$"))
        return self.page.locator(".schema-form-property").filter(has=label).last  # the first may be its group

    def fill(self, name: str, text: str) -> None:
        parameter = self.parameter(name)
        expect(parameter).to_be_visible()
        parameter.locator("input, textarea").fill(text)

    def open_choices(self, name: str) -> Locator:
        """Unfold the choices of a parameter."""
        self.parameter(name).get_by_role("group").get_by_role("button").press("Space")
        return self.page.get_by_role("option")

    def choose(self, name: str, choice: str) -> None:
        self.open_choices(name).get_by_text(choice, exact=True).click()

    def submit(self) -> UUID:
        """Press Submit, open the page of the new run, and return its id."""
        with self.page.expect_response("**/create_flow_run") as response:
            self.page.get_by_role("button", name="Submit").click()
        assert response.value.ok, response.value.text() + (self._site.folder / "up.log").read_text()[-5000:]
        run = UUID(response.value.json()["id"])
        self.open(f"runs/flow-run/{run}")
        return run

    def open_run(self, run: UUID, tab: str) -> None:
        """Open one of a run's tabs. Clicks are lost until the page has set its URL, which then has the tab."""
        self.open(f"runs/flow-run/{run}")
        for attempt in range(4):
            self.page.get_by_role("tablist").get_by_text(tab, exact=True).click()
            try:
                self.page.wait_for_url(lambda url: parse_qs(urlsplit(url).query).get("tab") == [tab], timeout=5000)
                return
            except TimeoutError:
                if attempt == 3:
                    raise

    def artifact(self, key: str) -> Locator:
        """Return an artifact's entry on the Artifacts tab."""
        return self.page.get_by_role("link", name=re.compile(rf"^\w+ {key} "))

    def open_artifact(self, run: UUID, key: str) -> None:
        self.open_run(run, "Artifacts")
        self.artifact(key).click()
        self.page.wait_for_url("**/artifacts/artifact/*")

    def expect_state(self, state: str) -> None:
        """Expect the page of a run to show its state without being reloaded."""
        badge = self.page.get_by_role("banner").get_by_text(state, exact=True)
        expect(badge).to_be_visible(timeout=PATIENCE_SECONDS * 1000)

    def retry(self, run: UUID) -> None:
        # A worker that is offered a run while it still puts away the last attempt ends with a RuntimeError.
        self._site.wait_until(lambda: self._site.is_put_away(run), lambda: "the worker")
        self.open(f"runs/flow-run/{run}")
        self.page.get_by_role("button", name="Retry").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        expect(self.page.get_by_role("dialog")).not_to_be_visible()

    def cancel(self) -> None:
        """Press Cancel on the page of a run."""
        self.page.get_by_role("button", name="Cancel").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Confirm").click()
        expect(self.page.get_by_role("dialog")).not_to_be_visible()

    def switch(self, name: str) -> Locator:
        """Return the switch beside a name."""
        named = self.page.get_by_text(name, exact=True)
        return named.locator("xpath=ancestor::*[.//*[@role='switch']][1]").get_by_role("switch")


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="music-") as name:  # its paths are in the pictures: short ones
        folder, port = Path(name), free_port()
        with (
            _up(folder, port),
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}),
            get_client(sync_client=True) as client,
        ):
            yield Site(f"http://127.0.0.1:{port}", folder, client)


@contextmanager
def _up(folder: Path, port: int) -> Iterator[None]:
    places = [f"--{name}={folder / name}" for name in ("archives", "tokens", "runs", "output")]
    environment = os.environ | {"PREFECT_HOME": str(folder / "prefect"), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    ports = ["--port", str(port), "--files-port", str(free_port())]
    command = [sys.executable, "-m", "deployments.cli", "up", *ports, "--workers", "1", *places]
    log = folder / "up.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while log.read_text().count("is ready") < 2:  # the workers' own last word
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield
    finally:
        process.terminate()  # not SIGKILL: its server and workers would live on
        process.wait(timeout=240)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # The system's Chromium, or Playwright's if it is installed.
        system = shutil.which("chromium")
        if system is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium here")
        expect.set_options(timeout=PAGE_SECONDS * 1000)
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"], timeout=PAGE_SECONDS * 1000)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of screenshots: MUSICGEN_SCREENSHOTS, or a temporary one."""
    chosen = os.environ.get("MUSICGEN_SCREENSHOTS")
    folder = Path(chosen) if chosen else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def ui(site: Site, chromium: Browser, screenshots: Path, request: pytest.FixtureRequest) -> Iterator[Ui]:
    context = chromium.new_context(viewport=WINDOW, timezone_id="UTC", locale="en-US")
    page = context.new_page()
    page.set_default_timeout(PAGE_SECONDS * 1000)
    page.route(re.compile("/(create_flow_run|set_state)$"), _again_while_locked)
    ui = Ui(page, site, screenshots)
    yield ui
    if request.session.testsfailed:
        page.screenshot(path=screenshots / f"after-{request.node.name}.png")
    context.close()


@pytest.fixture(scope="session")
def finetuned(site: Site) -> UUID:
    """A run of finetune from archives to music, completed. Its tokens are in the site's folder, in demo-tokens."""
    archives = site.folder / "demo"
    lofi = "chill lofi beats with rhodes, 84 bpm, in c major"
    make_demo_archives(archives, archives=2, clips=8, seconds=2.0)
    run = site.start(
        "finetune",
        archives=str(archives),
        tokens=str(site.folder / "demo-tokens"),
        run_dir=str(site.folder / "runs" / "demo"),
        output=str(site.folder / "output" / "demo"),
        prompts=[lofi, "driving techno with synth bass, 126 bpm, in d minor"],
        duration=3.0,
        sample_prompts=[lofi],
        sample_seconds=2.0,
        model="demo",
        num_epochs=2,
        **QUICK_TRAINING,
    )
    site.wait_for(run, "Completed")
    return run

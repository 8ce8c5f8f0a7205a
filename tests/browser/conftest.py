"""A separate `musicgen-flows up` and a headless Chromium, for tests that click through the Prefect UI."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from playwright.sync_api import Browser, Route, expect, sync_playwright
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from bench.servers import free_port
from deployments.environment import ROOT
from musicgen_core.demo_data import make_demo_archives
from tests.browser.opened import PAGE_SECONDS, Opened
from tests.browser.site import PATIENCE_SECONDS, Site
from tests.browser.ui import WINDOW, Ui

QUICK_TRAINING = {"batch_size": 1, "gradient_accumulation_steps": 1, "segment_seconds": 1.0}


def _again_while_locked(route: Route) -> None:
    """Retry on 503, which a server on SQLite returns now and then. Prefect's own clients and people retry, too."""
    answer = route.fetch()
    for _ in range(10):
        if answer.status != 503:
            break
        time.sleep(1)
        answer = route.fetch()
    route.fulfill(response=answer)


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


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opened]:
    """Open pages from files, which ask for nothing else and of which the browser has nothing to complain."""
    opened = Opened(chromium)
    yield opened
    for context in opened.contexts:
        context.close()
    assert all(url.startswith(("file:", "data:")) for url in opened.requests)
    assert opened.complaints == []


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

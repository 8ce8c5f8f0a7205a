"""A training run in the UI: live, killed half-way, retried, and the pages that show it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import psutil
import pytest
from playwright.sync_api import expect

from tests.run_directories import assert_saved_where_it_was, saved_step, steps

if TYPE_CHECKING:
    from tests.browser.site import Site
    from tests.browser.ui import Ui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
STEPS = 200
RESTARTING = "musicgen: crashed trainings start again"
TRAINING = {
    "model": "demo",  # whose tokens they are
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "segment_seconds": 2.0,
    "learning_rate": 1e-3,
    "num_epochs": STEPS,
    "max_steps": STEPS,
    "save_every_steps": 10,
    "keep_last": 2,
    "full_models": "none",
}


def start(site: Site, run_dir: Path) -> UUID:
    """Start a training run on the tokens of `finetuned`, and wait until it has saved a checkpoint."""
    run = site.start("train-lora", tokens=str(site.folder / "demo-tokens"), run_dir=str(run_dir), **TRAINING)
    site.wait_until(lambda: (run_dir / "latest.pt").exists(), lambda: site.run(run).state)
    return run


@contextmanager
def slowed(process: psutil.Process) -> Iterator[None]:
    """Let the process run for 0.05 s in every 0.5 s, so that it doesn't end before a slow browser has shown it."""
    over = threading.Event()

    def hold() -> None:
        with suppress(psutil.NoSuchProcess):
            while not over.wait(0.05):
                process.suspend()
                over.wait(0.45)
                process.resume()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def _restarted_by_hand(ui: Ui) -> Iterator[None]:
    """Switch off the automation that restarts crashed training runs, in the UI."""
    ui.open("automations")
    ui.switch(RESTARTING).click()
    expect(ui.switch(RESTARTING)).not_to_be_checked()
    yield
    ui.open("automations")
    ui.switch(RESTARTING).click()
    expect(ui.switch(RESTARTING)).to_be_checked()


@pytest.mark.usefixtures("finetuned", "_restarted_by_hand")
def test_retry_in_the_ui_resumes_a_killed_run_from_its_checkpoint(site: Site, ui: Ui) -> None:
    run_dir = site.folder / "runs" / "jazz-2026-11-23"
    run = start(site, run_dir)
    process = site.process(run)
    with slowed(process):
        ui.open_run(run, "Artifacts")
        ui.expect_state("Running")
        progress = ui.artifact("training-progress")
        expect(progress).to_contain_text(re.compile(r"step \d+ of"))
        before = progress.inner_text()
        expect(progress).not_to_have_text(before, use_inner_text=True)  # without being reloaded
        ui.screenshot("training-running")
        process.kill()
    ui.expect_state("Crashed")
    assert len(steps(run_dir)) < STEPS
    saved = saved_step(run_dir)

    ui.retry(run)
    ui.expect_state("Completed")
    assert steps(run_dir) == list(range(1, STEPS + 1))
    ui.page.reload()  # the graph as a whole
    ui.expect_state("Completed")
    ui.screenshot("training-retried")
    ui.open_artifact(run, "summary")
    resumed = ui.page.get_by_text(re.compile(r"resumed at step \d+"))
    [step] = re.findall(r"resumed at step (\d+)", resumed.inner_text())
    assert int(step) == saved > 0
    ui.screenshot("training-summary")
    ui.open_artifact(run, "training")
    for name in ("Loss of training and validation", "Learning rate of each step"):
        picture = ui.page.get_by_role("img", name=name)
        expect(picture).to_be_visible()
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 300
    ui.screenshot("training-page", height=1225)
    ui.page.get_by_role("img", name="Loss of training and validation").scroll_into_view_if_needed()
    ui.screenshot("training-loss")


@pytest.mark.usefixtures("finetuned")
def test_cancel_in_the_ui_saves_and_retry_resumes(site: Site, ui: Ui) -> None:
    run_dir = site.folder / "runs" / "cancelled"
    run = start(site, run_dir)
    process = site.process(run)
    with slowed(process):
        ui.open(f"runs/flow-run/{run}")
        ui.expect_state("Running")
        ui.cancel()
    ui.expect_state("Cancelled")
    psutil.wait_procs([process], timeout=60)
    assert not process.is_running()
    assert len(steps(run_dir)) < STEPS
    assert_saved_where_it_was(run_dir)
    ui.screenshot("training-cancelled")
    ui.retry(run)
    ui.expect_state("Completed")
    assert steps(run_dir) == list(range(1, STEPS + 1))


@pytest.mark.usefixtures("finetuned")
def test_a_refused_run_shows_why_on_its_page_and_in_its_summary(site: Site, ui: Ui) -> None:
    tokens, run_dir = site.folder / "demo-tokens", site.folder / "runs" / "refused"
    run = site.start("train-lora", tokens=str(tokens), run_dir=str(run_dir), **TRAINING | {"model": "debug"})
    ui.open(f"runs/flow-run/{run}")
    ui.expect_state("Failed")
    reason = re.compile("was tokenized with the model demo, whose codec is not that of debug")
    assert reason.search(str(site.run(run).state.message))
    expect(ui.page.get_by_text(reason).first).to_be_visible()  # in its logs, without a traceback before it
    ui.screenshot("training-refused")
    ui.open_artifact(run, "summary")
    expect(ui.page.get_by_text(reason).first).to_be_visible()
    assert not run_dir.exists()

"""Tokenizing from the UI: the run form, a run that fails, Retry."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from musicgen_core.demo_data import make_demo_archives

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun

    from tests.browser.site import Site
    from tests.browser.ui import Ui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
ARCHIVES = 139
BROKEN = ("archive_batch_0017", "archive_batch_0058", "archive_batch_0101")


def break_off(archive: Path) -> bytes:
    """Truncate an archive to half its size, and return its former content."""
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    return whole


def test_retry_in_the_ui_does_only_the_archives_that_failed(site: Site, ui: Ui) -> None:
    archives, tokens = site.folder / "archives", site.folder / "tokens"
    make_demo_archives(archives, archives=ARCHIVES, clips=2, seconds=0.5)
    whole = {stem: break_off(archives / f"{stem}.zip") for stem in BROKEN}

    ui.open_run_form("tokenize-archives")
    ui.fill("archives", str(archives))
    ui.fill("tokens", str(tokens))
    ui.fill("model", "debug")
    ui.choose("device", "cpu")
    ui.screenshot("run-form-filled")
    run = ui.submit()
    ui.expect_state("Failed")
    message = str(site.run(run).state.message)
    assert message.startswith(f"{len(BROKEN)} of {ARCHIVES} archives failed")
    assert [stem for stem in BROKEN if stem not in message] == []
    assert len(list(tokens.glob("*.parquet"))) == ARCHIVES - len(BROKEN)
    ui.page.reload()  # the graph as a whole
    ui.expect_state("Failed")
    ui.screenshot("run-failed")
    ui.open_artifact(run, "tokenized-archives")
    for stem in BROKEN:
        row = ui.page.get_by_role("row").filter(has_text=stem)
        expect(row).to_contain_text("failed")
        expect(row).to_contain_text("can't be read")
    ui.screenshot("tokenizing-table")
    ui.open_artifact(run, "summary")
    expect(ui.page.get_by_text(f"{len(BROKEN)} archives failed.")).to_be_visible()
    ui.screenshot("tokenizing-summary-failed")

    for stem, content in whole.items():
        (archives / f"{stem}.zip").write_bytes(content)
    before = {shard: shard.stat().st_mtime_ns for shard in tokens.glob("*.parquet")}
    ui.retry(run)
    ui.expect_state("Completed")

    def of_retry() -> list[TaskRun]:
        ended = [task for task in site.task_runs(run) if task.flow_run_run_count == 2]
        return [task for task in ended if task.state is not None and task.state.is_final()]

    # A server records the results of task runs with a delay.
    site.wait_until(lambda: len(of_retry()) == ARCHIVES, lambda: Counter(task.state_name for task in of_retry()))
    second = of_retry()
    assert Counter(task.state_name for task in second) == {"Cached": ARCHIVES - len(BROKEN), "Completed": len(BROKEN)}
    executed = sorted(task.name for task in second if task.state_name == "Completed")
    assert executed == [f"tokenize-{stem}" for stem in BROKEN]
    assert {shard: shard.stat().st_mtime_ns for shard in before} == before
    assert len(list(tokens.glob("*.parquet"))) == ARCHIVES
    ui.open_run(run, "Task Runs")
    ui.expect_state("Completed")
    ui.page.get_by_placeholder("Search by run name").fill(BROKEN[0])
    expect(ui.page.get_by_text("2 Task runs")).to_be_visible()  # one that failed, and the one of Retry
    ui.screenshot("run-retried")
    ui.open_artifact(run, "summary")
    expect(ui.page.get_by_text(f"Archives: {ARCHIVES}.")).to_be_visible()
    expect(ui.page.get_by_text(str(tokens), exact=True).first).to_be_visible()
    ui.screenshot("tokenizing-summary")

"""The Prefect UI's pages of deployments, workers, automations, schedules and results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from playwright.sync_api import Page, expect
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName

from deployments.registering import DEPLOYMENTS, read_automations
from tasks.previews import NO_PLAYER

if TYPE_CHECKING:
    from tests.browser.site import Site
    from tests.browser.ui import Ui

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
PLAY = "async audio => { await audio.play(); return audio.duration }"
LOAD = """async audio => {
  audio.muted = true;
  if (audio.readyState < 1) {
    const loaded = new Promise(resolve => audio.addEventListener("loadedmetadata", resolve));
    audio.preload = "auto";
    audio.load();
    await loaded;
  }
  audio.pause();
  const sought = new Promise(resolve => audio.addEventListener("seeked", resolve));
  audio.currentTime = 0.8 * audio.duration;
  await sought;
  return audio.duration;
}"""


def test_the_deployments_are_listed_with_their_tags(ui: Ui) -> None:
    ui.open("deployments")
    for name in DEPLOYMENTS:
        row = ui.page.get_by_role("row").filter(has=ui.page.get_by_role("link", name=name))
        expect(row).to_contain_text("Ready")
        expect(row).to_contain_text("musicgen")
    ui.screenshot("deployments")


def test_the_work_pool_has_its_queues_and_a_worker_for_each(ui: Ui) -> None:
    ui.open("work-pools/work-pool/gpu")
    tabs = ui.page.get_by_role("tablist")
    for tab, names in (("Work Queues", ("default", "tokenizing")), ("Workers", ("-gpu-0", "-tokenizing"))):
        tabs.get_by_text(tab, exact=True).click()
        for name in names:
            row = ui.page.get_by_role("row").filter(has_text=name)
            expect(row).to_be_visible()
        ui.screenshot(f"work-pool-{tab.lower().replace(' ', '-')}")


def test_the_automations_are_on_and_say_what_they_do(ui: Ui) -> None:
    ui.open("automations")
    for automation in read_automations():
        expect(ui.page.get_by_role("link", name=automation["name"])).to_be_visible()
        expect(ui.page.get_by_text(automation["description"])).to_be_visible()
        expect(ui.switch(automation["name"])).to_be_checked()
    ui.screenshot("automations")


def test_switching_the_weekly_schedule_keeps_its_parameters(site: Site, ui: Ui) -> None:
    def schedule() -> tuple[bool, dict[str, Any]]:
        [found] = site.client.read_deployment_by_name("train-lora/train-lora").schedules
        return found.active, found.parameters

    wanted = {"start": {"init_from_latest": True, "only_new_tokens": True}}
    ui.open_deployment("train-lora")
    switch = ui.switch("weekly-retrain")
    expect(switch).not_to_be_checked()
    switch.click()
    expect(switch).to_be_checked()
    site.wait_until(lambda: schedule() == (True, wanted), schedule)
    ui.screenshot("schedule-on")
    coming = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["Scheduled"])))
    site.wait_until(lambda: bool(site.client.read_flow_runs(flow_run_filter=coming)), lambda: "the scheduler")
    names = [run.name for run in site.client.read_flow_runs(flow_run_filter=coming)]
    ui.page.get_by_role("tablist").get_by_text("Upcoming", exact=True).click()
    expect(ui.page.get_by_text(re.compile("|".join(names))).first).to_be_visible()
    ui.screenshot("schedule-coming")
    ui.open_deployment("train-lora")

    def is_off() -> bool:
        if switch.is_checked():  # also again: on a busy machine Prefect's server may answer with an error
            switch.click()
        return schedule() == (False, wanted)

    site.wait_until(is_off, schedule)
    expect(switch).not_to_be_checked()


def test_music_plays_in_the_page(site: Site, ui: Ui, finetuned: UUID) -> None:
    [generated] = [run for run in site.subflows(finetuned) if run.name.startswith("generate-music")]
    ui.open_artifact(generated.id, "music")
    for prompt in ("chill lofi beats with rhodes", "driving techno with synth bass"):
        expect(ui.page.get_by_role("heading", name=prompt)).to_be_visible()
    pictures = ui.page.get_by_role("img", name="Spectrogram of generated_")
    expect(pictures).to_have_count(2)
    for picture in pictures.all():
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 300
    players = ui.page.locator("audio")
    expect(players).to_have_count(2)
    expect(players.first).to_be_visible()
    assert 2.5 < players.first.evaluate(PLAY) < 3.5
    ui.page.wait_for_function("() => document.querySelector('audio').currentTime > 0")
    assert NO_PLAYER not in ui.page.locator("body").inner_text()
    ui.screenshot("music", height=1250)


def test_the_v2_ui_explains_missing_players_and_links_work(site: Site, ui: Ui, finetuned: UUID) -> None:
    [generated] = [run for run in site.subflows(finetuned) if run.name.startswith("generate-music")]
    ui.open_artifact(generated.id, "music")
    ui.open("v2" + urlsplit(ui.page.url).path)
    expect(ui.page.get_by_text("Switch to V1 UI", exact=True)).to_be_visible()
    expect(ui.page.get_by_text(NO_PLAYER).first).to_be_visible()
    assert ui.page.locator("audio").count() == 0
    ui.screenshot("music-v2")
    ui.page.get_by_role("link", name="index.html").first.click()
    assert_first_wav_loads(ui.page, seconds=3.0)


def assert_first_wav_loads(page: Page, seconds: float) -> None:
    """Expect a browser to load the first player's file, and to play it from near its end."""
    player = page.locator("audio, video").first
    expect(player).to_be_attached()
    assert player.evaluate(LOAD) == pytest.approx(seconds, abs=0.3)
    assert player.evaluate("audio => audio.readyState") >= 2
    assert player.evaluate("audio => audio.currentTime") == pytest.approx(0.8 * seconds, abs=0.3)


def test_links_of_a_summary_lead_to_pages_and_wavs_that_play(site: Site, ui: Ui, finetuned: UUID) -> None:
    ui.open_artifact(finetuned, "summary")
    music, run_dir = site.folder / "output" / "demo", site.folder / "runs" / "demo"
    report, samples = run_dir / "evaluation" / "report.html", run_dir / "samples" / "index.html"
    pages = {music / "index.html": 3.0, music / "generated_000.wav": 3.0, samples: 2.0, report: 2.0}
    for file, seconds in pages.items():
        name = file.name if file.parent == music else str(file)  # the folder of music is named once
        with ui.page.context.expect_page() as opened:
            ui.page.get_by_role("link", name=name, exact=True).first.click()
        assert_first_wav_loads(opened.value, seconds)
        opened.value.screenshot(path=ui.screenshots / f"served-{file.parent.name}-{file.stem}.png")
        opened.value.close()


def test_an_artifact_links_to_its_versions_and_all_artifacts(ui: Ui, finetuned: UUID) -> None:
    ui.open_artifact(finetuned, "summary")
    ui.page.get_by_role("link", name="summary", exact=True).click()
    ui.page.wait_for_url("**/artifacts/key/summary")
    expect(ui.page.get_by_text("Created").first).to_be_visible()
    ui.screenshot("artifact-versions")
    ui.page.get_by_role("link", name="Artifacts", exact=True).click()
    ui.page.wait_for_url("**/artifacts")
    for key in ("music", "training-samples", "summary"):
        expect(ui.page.get_by_text(key, exact=True).first).to_be_visible()
    ui.screenshot("artifacts")


def test_a_fresh_browser_reaches_playing_music_from_the_root(ui: Ui, finetuned: UUID) -> None:
    ui.open("")
    ui.page.get_by_text("Runs", exact=True).click()
    ui.page.get_by_role("link", name=re.compile("^generate-music · ")).first.click()
    ui.expect_state("Completed")
    ui.page.get_by_role("tablist").get_by_text("Artifacts", exact=True).click()
    ui.artifact("music").click()
    player = ui.page.locator("audio").first
    expect(player).to_be_visible()
    assert 2.5 < player.evaluate(PLAY) < 3.5


def test_the_sample_clips_of_a_training_play_in_the_page(site: Site, ui: Ui, finetuned: UUID) -> None:
    [trained] = [run for run in site.subflows(finetuned) if run.name.startswith("train-lora")]
    ui.open_artifact(trained.id, "training-samples")
    for name in ("base model", "after epoch 2"):
        expect(ui.page.get_by_text(name)).to_be_visible()
    expect(ui.page.locator("audio")).to_have_count(2)
    assert 1.5 < ui.page.locator("audio").last.evaluate(PLAY) < 2.5
    ui.screenshot("training-samples")


def test_the_summary_of_finetune_has_the_place_of_every_output(site: Site, ui: Ui, finetuned: UUID) -> None:
    ui.open_artifact(finetuned, "summary")
    expect(ui.page.get_by_role("heading", name="Music")).to_be_visible()
    shown = {text.strip() for text in ui.page.locator("article").locator("code, a").all_inner_texts()}
    places = {Path(text) for text in shown if text.startswith("/") and "ARCHIVE" not in text}
    assert sorted(str(place) for place in places if not place.exists()) == []
    tokens, run_dir, music = site.folder / "demo-tokens", site.folder / "runs" / "demo", site.folder / "output" / "demo"
    outputs = [run_dir / "lora_weights" / "best_lora.pt", run_dir / "latest.pt", music]
    assert places >= {tokens, run_dir, *outputs}
    assert shown >= {wav.name for wav in music.glob("*.wav")}
    ui.screenshot("finetune-summary", height=2000)
    ui.open(f"runs/flow-run/{finetuned}")
    ui.expect_state("Completed")
    ui.screenshot("finetune-run")


def test_the_runs_page_names_what_each_run_was_about(site: Site, ui: Ui, finetuned: UUID) -> None:
    ui.open("runs")
    expect(ui.page.get_by_role("link", name="finetune · demo").first).to_be_visible()
    ui.screenshot("runs")
    ui.open("dashboard")
    ui.screenshot("dashboard")

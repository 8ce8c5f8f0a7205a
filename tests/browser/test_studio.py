"""The studio's page in a browser: a prompt is heard while it is made, strengths, continuations, history, password."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Browser, Page, expect

from musicgen_core.generation.page import write_index
from tests.browser.opened import Opened
from tests.studio_site import Site, open_studio, write_runs

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
MARKUP = "<img src=x onerror=alert(1)> & <script>alert(2)</script>"
LONG_SECONDS = "30"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    write_runs(runs)
    return runs


@pytest.fixture
def site(runs: Path, tmp_path: Path) -> Iterator[Site]:
    with open_studio(tmp_path / "music", runs) as site:
        yield site


@pytest.fixture
def opened(chromium: Browser) -> Iterator[Opened]:
    """Pages of which the browser has nothing to complain."""
    opened = Opened(chromium)
    yield opened
    for context in opened.contexts:
        context.close()
    assert opened.complaints == []


def page_of(site: Site, opened: Opened, **options: Any) -> Page:
    page = opened(**options)
    page.goto(site.url)
    expect(page.locator("#status")).to_have_class("ready")
    return page


def make(page: Page, prompt: str, seconds: str = "0.5") -> None:
    page.get_by_label("What should it sound like?").fill(prompt)
    page.get_by_label("Seconds").fill(seconds)
    page.get_by_role("button", name="Make music").click()


def sidecars(site: Site) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(site.served.folder.path.glob("generated_*.json"))]


def test_a_prompt_is_heard_before_its_piece_is_complete(site: Site, opened: Opened, screenshots: Path) -> None:
    page = page_of(site, opened)
    make(page, MARKUP, LONG_SECONDS)
    heard = page.locator(".job[data-heard]:not([data-heard='0'])")
    expect(heard).to_have_attribute("data-state", "making")
    assert 0 < float(heard.get_attribute("data-heard") or 0) < float(LONG_SECONDS)
    assert sidecars(site) == []
    page.screenshot(path=screenshots / "studio-making.png")
    piece = page.locator(".piece")
    expect(piece.get_by_role("heading")).to_have_text(MARKUP)  # as text, and no dialog opened
    page.get_by_role("button", name="Listen").click()  # until then its card stays
    expect(page.locator(".job")).to_have_count(0)
    assert piece.locator("audio").evaluate("audio => new Promise(done => { audio.oncanplay = done; audio.load(); })")


def test_a_strength_is_moved_by_key(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    adapter = page.locator(".adapter")
    expect(adapter).to_contain_text("jazz")
    expect(adapter).to_contain_text("validation loss 6.250")
    slider = page.get_by_role("slider", name="jazz")
    for _ in range(6):
        slider.press("ArrowRight")
    expect(page.get_by_label("Strength of jazz")).to_have_value("0.3")
    make(page, "with strength")
    expect(page.locator(".piece .facts")).to_contain_text("jazz/best_lora.pt × 0.3")
    (sidecar,) = sidecars(site)
    assert sidecar["adapter"]["strength"] == 0.3


def test_a_continuation_and_a_reload_that_finds_the_history(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    make(page, "first", "1")
    expect(page.locator(".piece")).to_have_count(1)
    page.get_by_role("button", name="Continue from here").click()
    expect(page.locator("#source")).to_contain_text("Continues generated_000 from 1 s")
    make(page, "second", "0.5")
    expect(page.locator(".piece")).to_have_count(2)
    expect(page.locator(".piece .facts").first).to_contain_text("1.5 s")
    expect(page.locator(".piece .facts").first).to_contain_text("a continuation")
    page.reload()
    expect(page.locator(".piece h3")).to_have_text(["second", "first"])
    page.locator(".piece").first.get_by_role("button", name="Use its settings").click()
    expect(page.get_by_label("Seconds")).to_have_value("0.5")
    expect(page.locator("#source")).to_contain_text("Continues generated_000 from 1 s")
    page.locator(".piece").last.get_by_role("button", name="Vary").click()
    expect(page.locator(".piece h3")).to_have_text(["first", "second", "first"])
    first, second, varied = sidecars(site)
    assert second["continued_from"].endswith("generated_000.wav") and second["duration"] == 1.5
    assert varied["prompt"] == "first" and varied["seed"] != first["seed"] and varied["duration"] == 1


def test_a_part_is_made_again_between_what_stays(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    make(page, "whole", "2")
    expect(page.locator(".piece")).to_have_count(1)
    page.get_by_role("button", name="Redo a part").click()
    page.get_by_label("From second").fill("0.8")
    page.get_by_label("To second").fill("1.2")
    page.get_by_role("button", name="Redo it").click()
    expect(page.locator(".piece")).to_have_count(2)
    first, second = (site.served.folder.path / f"generated_00{number}.wav" for number in (0, 1))
    (whole, rate), (redone, _) = soundfile.read(first), soundfile.read(second)
    assert whole.shape == redone.shape
    assert np.array_equal(whole[: rate // 2], redone[: rate // 2]) and np.array_equal(
        whole[-rate // 2 :], redone[-rate // 2 :]
    )
    assert not np.array_equal(whole, redone)
    page.locator(".piece").first.get_by_role("button", name="Use its settings").click()
    expect(page.locator("#carried")).to_contain_text("redo: 0.8-1.2")
    page.locator(".piece").first.get_by_role("button", name="Vary").click()  # the same part, with another seed
    expect(page.locator(".piece")).to_have_count(3)
    assert {one["duration"] for one in sidecars(site)} == {2}
    assert "redo" in sidecars(site)[2]


def test_the_part_that_is_offered_lies_within_a_short_sample_of_another_program(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    sidecar = {"prompt": "short", "duration": 1.16, "seed": 1, "variation": 0, "adapter": None, "sampling": {}}
    sidecar["fields"] = {"prompt": "short", "instruments": ["piano"]}
    (site.served.folder.path / "generated_000.json").write_text(json.dumps(sidecar))
    soundfile.write(site.served.folder.path / "generated_000.wav", np.full(37_120, 0.1), 32_000)
    expect(page.locator(".piece")).to_have_count(1)  # without a reload
    page.get_by_role("button", name="Redo a part").click()
    expect(page.get_by_label("From second")).to_have_value("0")
    expect(page.get_by_label("To second")).to_have_value("0.5")
    page.get_by_role("button", name="Redo it").click()
    expect(page.locator(".piece")).to_have_count(2)
    expect(page.locator("#carried")).to_contain_text("instruments: piano")
    assert sidecars(site)[1]["fields"]["instruments"] == ["piano"]


def test_a_sound_that_is_stopped_and_heard_again_can_be_stopped_again(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    make(page, "long", LONG_SECONDS)
    listen = page.locator(".job .listen")
    expect(page.locator(".job[data-heard]:not([data-heard='0'])")).to_have_count(1)
    for _ in range(2):
        listen.click()
        expect(listen).to_have_attribute("aria-pressed", "false")
        listen.click()
        page.wait_for_timeout(500)  # in which a timer of the sound before would end this one
        expect(listen).to_have_attribute("aria-pressed", "true")


def test_base_and_adapter_are_compared_on_the_page_of_the_folder(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    page.get_by_label("Strength of jazz").fill("1")
    page.get_by_text("More settings").click()
    page.get_by_label("Also with the base model, to compare").check()
    make(page, "compared")
    expect(page.locator(".piece")).to_have_count(2)
    with page.context.expect_page() as other:
        page.get_by_role("link", name="Side by side, to compare").click()
    expect(other.value.locator("audio")).to_have_count(2)
    expect(other.value.get_by_role("heading", name="compared")).to_be_visible()
    assert {bool(one["adapter"]) for one in sidecars(site)} == {False, True}


def test_a_second_click_waits_and_can_be_cancelled(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    make(page, "one", LONG_SECONDS)
    make(page, "two", LONG_SECONDS)
    second = page.locator(".job", has_text="two")
    expect(second).to_contain_text("1 before it")
    second.get_by_role("button", name="Cancel").click()
    expect(second).to_have_count(0)
    page.close()  # a page that closes loses no piece
    (first, _) = site.served.studio.jobs()
    assert site.wait(first.id)["state"] == "done"
    assert [one["prompt"] for one in sidecars(site)] == ["one"]


def test_what_is_wrong_is_said_and_the_form_stays(site: Site, opened: Opened) -> None:
    page = page_of(site, opened)
    page.get_by_label("Key", exact=True).fill("H sharp")
    make(page, "kept")
    expect(page.get_by_role("alert")).to_contain_text("H sharp")
    expect(page.get_by_label("What should it sound like?")).to_have_value("kept")
    opened.complaints.clear()  # the browser logs the refused request


def test_a_password_is_asked_for(runs: Path, tmp_path: Path, opened: Opened) -> None:
    with open_studio(tmp_path / "music", runs, "sesame") as site:
        page = opened()
        page.goto(site.url)
        page.get_by_label("Password").fill("wrong")
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the password")
        page.get_by_label("Password").fill("sesame")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_have_class("ready")
        make(page, "behind a password")
        expect(page.locator(".piece")).to_have_count(1)
        page.close()  # it would ask the ended server for news
    opened.complaints.clear()  # the browser logs the refused password


def test_a_phone_shows_it_whole_and_every_control_has_a_name(site: Site, opened: Opened) -> None:
    page = page_of(site, opened, viewport={"width": 390, "height": 844}, color_scheme="dark")
    make(page, "a prompt of so many words that it needs several lines on the narrow screen of a phone " * 2)
    expect(page.locator(".piece")).to_have_count(1)
    expect(page.locator(".adapter")).to_have_count(1)
    page.get_by_text("More settings").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    nameless = page.evaluate(
        "[...document.querySelectorAll('main :is(input, textarea, button)')].filter(one => !(one.labels?.length || "
        "one.ariaLabel || one.textContent.trim())).map(one => one.id)"
    )
    assert nameless == []
    page.get_by_label("What should it sound like?").press("Control+Enter")
    expect(page.locator(".piece")).to_have_count(2)


def test_a_blind_vote_is_kept_beside_the_music_and_tallied(site: Site, opened: Opened, screenshots: Path) -> None:
    names = ("generated_000", "generated_001")
    adapters = (None, {"path": "/runs/jazz/lora_weights/best_lora.pt", "sha256": "ab" * 32, "strength": 0.5})
    for name, adapter in zip(names, adapters, strict=True):
        sidecar = {"prompt": MARKUP, "seed": 7, "variation": 0, "duration": 1.0, "adapter": adapter, "sampling": {}}
        (site.served.folder.path / f"{name}.json").write_text(json.dumps(sidecar))
        soundfile.write(site.served.folder.path / f"{name}.wav", np.full(32_000, 0.1), 32_000)
    page = page_of(site, opened)
    section = page.locator("#comparisons section")
    expect(section.locator("h3")).to_have_text(MARKUP)
    section.get_by_role("button", name="Play").click()
    page.keyboard.press("2")
    expect(section.locator(".switch").nth(1)).to_have_attribute("aria-pressed", "true")
    section.get_by_role("button", name="Blind comparison").click()
    expect(section.locator(".switch")).to_have_text(["A", "B"])
    section.get_by_role("button", name="A is better").click()
    expect(section.get_by_text("base model : jazz/best_lora.pt 0.5")).to_be_visible()
    expect(section.get_by_text("no preference yet")).to_be_visible()
    (line,) = (site.served.folder.path / "votes.jsonl").read_text().splitlines()
    vote = json.loads(line)
    assert {vote["a"]["file"], vote["b"]["file"]} == {"generated_000.wav", "generated_001.wav"} and vote["vote"] == "a"
    assert vote["seed"] == 7 and vote["prompt"] == MARKUP
    page.screenshot(path=screenshots / "studio-vote.png")

    folder = site.served.folder.path
    write_index(folder, [(name, json.loads((folder / f"{name}.json").read_text())) for name in names])
    page.goto(f"{site.url}/{page.locator('#all').get_attribute('href')}")
    page.get_by_role("button", name="Blind comparison").click()
    page.get_by_role("button", name="A is better").click()
    expect(page.get_by_text("no preference yet")).to_be_visible()
    assert len((folder / "votes.jsonl").read_text().splitlines()) == 2

"""The page of generated music: its samples play, its pictures show, and prompts are only text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.generation.files import GeneratedSample, write_sample
from musicgen_core.generation.page import write_index
from tests.browser.opened import Opened
from tests.browser.served import served_page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
SECONDS = 8.0
ADAPTER = {"path": "/runs/jazz/lora_weights/best_lora.pt", "sha256": "ab" * 32, "epoch": 4, "global_step": 1200}
MARKUP = "<script>document.title = 'taken over'</script> <img src=x onerror=alert(1)> & \"drums\""
PROMPTS = {
    "Relaxing jazz piano with soft background ambience": (None, ADAPTER),
    "عود هادئ مع إيقاع بطيء": (None, ADAPTER),
    "静かな琴の音色": (None, ADAPTER),
    "A long one. " + "Upbeat electronic dance music with strong bass and a bright synth lead; " * 5: (None, ADAPTER),
    MARKUP: (ADAPTER, ADAPTER, ADAPTER, ADAPTER),
    "Slow strings": (None,),
    "Fast drums, and a title of two lines or of three lines, as long as it takes": (ADAPTER,),
    "A choir": (None,),
    "A solo flute": (None,),
}


def notes(number: int) -> np.ndarray:
    """Four notes a second, of a scale of their own."""
    time = np.arange(int(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    root = 110 * 2 ** (number % 12 / 12)
    step = (time * 4).astype(int)
    tone = sum(np.sin(2 * np.pi * root * 2 ** ((step * 5 % 12) / 12) * part * time) / part for part in range(1, 9))
    return (0.3 * tone * np.exp(-(time * 4 % 1) * 3)).astype(np.float32)


def sidecar_of(prompt: str, adapter: dict[str, Any] | None, variation: int) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "seed": 7,
        "duration": SECONDS,
        "model": "facebook/musicgen-large@sha256:0123456789abcdef",
        "adapter": adapter,
        "sampling": {"duration": SECONDS, "seed": 7, "greedy": False, "top_k": 250, "top_p": 0.0, "guidance": 3.0},
        "variation": variation,
    }


@pytest.fixture(scope="session")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    pieces = []
    for prompt, adapters in PROMPTS.items():
        for number, adapter in enumerate(adapters):
            sidecar = sidecar_of(prompt, adapter, number if prompt == MARKUP else 0)
            stem = f"generated_{len(pieces):03d}"
            formats = ("flac", "mp3") if prompt == MARKUP else ()
            write_sample(folder, GeneratedSample(stem, notes(len(pieces)), None, sidecar), formats)
            pieces.append((stem, sidecar))
    write_index(folder, pieces)
    return folder


@pytest.fixture(scope="session")
def address(music: Path) -> Iterator[str]:
    with served_page(music) as url:
        yield url


@pytest.fixture
def page(opened: Opened) -> Page:
    return opened()


def start(page: Page, number: int) -> None:
    """Press Play as a person does, with the keyboard."""
    player = page.locator("audio").nth(number)
    player.focus()
    player.press("Space")
    page.wait_for_function("number => document.querySelectorAll('audio')[number].currentTime > 0.2", arg=number)


def paused(page: Page) -> list[bool]:
    found: list[bool] = page.locator("audio").evaluate_all("all => all.map(audio => audio.paused)")
    return found


def test_every_sample_can_be_played(page: Page, address: str) -> None:
    page.goto(address)
    players = page.locator("audio")
    expect(players).to_have_count(sum(map(len, PROMPTS.values())))
    for number in range(players.count()):
        start(page, number)
        assert players.nth(number).evaluate("audio => audio.duration") == SECONDS


def test_starting_a_sample_pauses_the_playing_one(page: Page, address: str) -> None:
    page.goto(address)
    for number in (0, 1, 5):
        start(page, number)
        assert [number for number, is_paused in enumerate(paused(page)) if not is_paused] == [number]


def test_nothing_of_the_music_is_loaded_before_it_is_wanted(page: Page, address: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address, wait_until="networkidle")
    assert not [url for url in asked if url.endswith((".wav", ".flac", ".mp3"))]


def test_every_spectrogram_is_shown(page: Page, address: str) -> None:
    page.goto(address)
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()
        page.wait_for_function("picture => picture.complete", arg=picture.element_handle())
        assert picture.evaluate("picture => picture.naturalWidth") > 300


def test_a_prompt_with_markup_is_shown_as_it_was_written(page: Page, address: str) -> None:
    page.goto(address)
    assert [heading.text_content() for heading in page.locator("h2").all()] == list(PROMPTS)
    assert page.title() == "Generated music"


def test_the_page_works_from_a_disk_without_a_server(page: Page, music: Path) -> None:
    page.goto((music / "index.html").as_uri())
    start(page, 0)


@pytest.mark.parametrize("link", ["JSON", "FLAC", "MP3"])
def test_links_lead_to_files(page: Page, address: str, link: str) -> None:
    page.goto(address)
    last = page.get_by_role("link", name=f"as {link}").last
    url = last.evaluate("link => link.href")
    assert page.request.get(url).ok


def test_players_have_distinct_accessible_names(page: Page, address: str) -> None:
    page.goto(address)
    prompt = next(iter(PROMPTS))
    for label in ("Base model", "With adapter"):
        expect(page.get_by_role("article", name=f"{label} {prompt}")).to_have_count(1)


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("wide", 1200, "light"), ("dark", 1200, "dark"), ("phone", 400, "light")]
)
def test_the_page_fits_its_window(
    page: Page, address: str, screenshots: Path, name: str, width: int, scheme: Any
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator("img").all():
        picture.scroll_into_view_if_needed()
    page.wait_for_load_state("networkidle")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=screenshots / f"music-page-{name}.png", full_page=True)


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_tampered_page_loads_and_runs_nothing(chromium: Browser, address: str, music: Path, from_disk: bool) -> None:
    """If text got into the page as markup, the Content-Security-Policy would still block it."""
    remote = address.replace("127.0.0.1", "localhost")  # another origin that answers
    injected = (
        f"<img src='{remote}' onerror=\"document.title='taken over'\"><script>document.title='taken over'</script>"
        f"<style>h1 {{ display: none }}</style><script src='{remote}'></script><link rel=stylesheet href='{remote}'>"
        f"<iframe src='{remote}'></iframe><audio src='{remote}' preload=auto></audio>"
    )
    (music / "tampered.html").write_text((music / "index.html").read_text().replace("<main>", f"<main>{injected}", 1))
    context = chromium.new_context()
    context.set_default_timeout(120_000)  # a busy machine loads a page slowly
    page, loaded = context.new_page(), list[str]()
    page.on("response", lambda response: loaded.append(response.url))
    url = (music / "tampered.html").as_uri() if from_disk else address.replace("index.html", "tampered.html")
    page.goto(url, wait_until="networkidle")
    assert page.title() == "Generated music" and page.locator("h1").is_visible()
    assert not [found for found in loaded if found.startswith(remote)]
    page.locator("audio[controls]").first.evaluate("audio => audio.play()")  # the page's own parts still work
    context.close()


def test_foreign_pages_run_no_scripts_and_load_nothing_remote(chromium: Browser, address: str, music: Path) -> None:
    remote = address.replace("127.0.0.1", "localhost")
    script = f"document.title='taken over'; fetch('generated_000.wav'); fetch('{remote}')"
    (music / "foreign.html").write_text(
        f"<title>notes</title><script>{script}</script><img src='{remote}' onerror=\"{script}\"><h1>mine</h1>"
    )
    context = chromium.new_context()
    context.set_default_timeout(120_000)  # a busy machine loads a page slowly
    page, asked = context.new_page(), list[str]()
    page.on("response", lambda response: asked.append(response.url))
    foreign = address.replace("index.html", "foreign.html")
    page.goto(foreign, wait_until="networkidle")
    assert page.title() == "notes" and page.locator("h1").is_visible()
    assert [url for url in asked if not url.endswith("favicon.ico")] == [foreign]
    context.close()

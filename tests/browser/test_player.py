"""The player of a page of music: it switches without a gap, by click and key, and takes blind votes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import Page, expect
from upath import UPath

from musicgen_core.generation.page import write_index
from musicgen_core.generation.votes import read_votes, tally
from tests.browser.opened import Opened
from tests.browser.served import served_page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]
RATE, SECONDS = 32_000, 6.0
ADAPTER = {"path": "/runs/jazz/lora_weights/best_lora.pt", "sha256": "ab" * 32, "epoch": 4, "global_step": 1200}
FADE_SECONDS = 0.0085
# A context without a device, which renders as fast as it can: what it renders is all that would be heard, and the page
# acts at exact times of its clock.
OFFLINE = f"""
(() => {{
const actions = [];
globalThis.at = (seconds, key) => actions.push([seconds, key]);
globalThis.AudioContext = function () {{
  const context = new OfflineAudioContext(1, {int(SECONDS * RATE)}, {RATE});
  const resume = context.resume.bind(context);
  let isStarted = false;
  context.resume = () => {{
    if (isStarted) return Promise.resolve();
    isStarted = true;
    for (const [seconds, key] of actions) context.suspend(seconds).then(() => {{
      const pressed = new KeyboardEvent("keydown", {{key, bubbles: true}});
      document.querySelector("compare-player .switch").dispatchEvent(pressed);
      resume();
    }});
    context.suspend(0.01).then(async () => {{ // sound is loading
      while (!document.querySelector("compare-player").isPlaying) await new Promise(next => setTimeout(next, 5));
      resume();
    }});
    context.startRendering().then(buffer => {{ globalThis.heard = buffer.getChannelData(0); }});
    return Promise.resolve();
  }};
  return context;
}};
}})();
"""


def noise(seed: int) -> np.ndarray:
    """Return a sound that nowhere resembles itself: each sample says where it is. [samples]"""
    white = np.random.default_rng(seed).normal(size=int(SECONDS * RATE))
    smooth = np.convolve(white, np.hanning(64), mode="same")
    return (0.5 * smooth / np.abs(smooth).max()).astype(np.float32)


def sidecar_of(strength: float | None, prompt: str = "Relaxing jazz piano") -> dict[str, Any]:
    adapter = None if strength is None else ADAPTER | {"strength": strength}
    return {"prompt": prompt, "seed": 7, "duration": SECONDS, "variation": 0, "model": "demo", "adapter": adapter}


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the base model and two strengths; of another prompt, two samples."""
    folder = tmp_path_factory.mktemp("music")
    pieces = [(f"generated_{number:03d}", sidecar_of(strength)) for number, strength in enumerate((None, 0.5, 1.0))]
    pieces += [(f"generated_{3 + number:03d}", sidecar_of(number or None, "Slow strings")) for number in range(2)]
    for number, (stem, _) in enumerate(pieces):
        soundfile.write(folder / f"{stem}.wav", noise(number), RATE, subtype="FLOAT")
    write_index(folder, pieces)
    return folder


@pytest.fixture(scope="module")
def address(music: Path) -> Iterator[str]:
    with served_page(music) as url:
        yield url


@pytest.fixture
def page(opened: Opened) -> Page:
    return opened()


def heard(page: Page, actions: list[tuple[float, str]], address: str) -> np.ndarray:
    """Play the first comparison, press keys at times of the audio clock, and return what is heard, [samples]."""
    page.add_init_script(OFFLINE + "".join(f"at({seconds}, {json.dumps(key)});" for seconds, key in actions))
    page.goto(address)
    page.locator("compare-player .play").first.click()
    page.wait_for_function("() => globalThis.heard")
    encoded = page.evaluate(
        "() => { const bytes = new Uint8Array(heard.buffer); let text = '';"
        "for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));"
        "return btoa(text); }"
    )
    return np.frombuffer(base64.b64decode(encoded), dtype=np.float32)


def test_a_switch_by_key_keeps_the_position_to_the_sample_without_gap_or_click(page: Page, address: str) -> None:
    switches = [(1.0, "2"), (2.0, "3"), (2.5, "1"), (2.502, "2"), (4.0, "a")]
    found = heard(page, switches, address)
    assert not page.locator("compare-player .status").first.text_content()
    sounds = [noise(number) for number in range(3)]
    selected = np.zeros(len(found), dtype=int)
    fading = np.zeros(len(found), dtype=bool)
    for seconds, key in switches:
        begin = int(seconds * RATE)
        selected[begin:] = "123".find(key) if key.isdigit() else "ab".find(key)
        fading[begin : begin + int(2.5 * FADE_SECONDS * RATE)] = True
    begin = int(np.argmax(found != 0))
    assert begin < 0.1 * RATE
    steady = ~fading
    steady[: begin + int(FADE_SECONDS * RATE) + 64] = False
    offsets = range(begin - 2, begin + 3)
    distances = []
    for offset in offsets:
        places = np.arange(len(found)) - offset
        expected = np.choose(selected, [sound[np.clip(places, 0, len(sound) - 1)] for sound in sounds])
        distances.append(float(np.abs(found - expected)[steady].max()))
    assert min(distances) < 1e-5, distances  # the same place of the version selected, everywhere outside the fades
    loud = np.abs(found[begin + 64 :]) > 1e-6
    assert np.diff(np.flatnonzero(loud)).max() < 8  # no run of zeros
    steps = max(float(np.abs(np.diff(sound)).max()) for sound in sounds)
    assert np.abs(np.diff(found)).max() < 1.5 * steps  # cos + sin is at most 1.42


def test_keys_and_clicks_switch_play_and_seek(page: Page, address: str) -> None:
    page.goto(address)
    player = page.locator("compare-player").first
    switches = player.locator(".switch")
    expect(switches).to_have_text(["1Base model", "2Strength 0.5", "3Strength 1"])
    player.get_by_role("button", name="Play").focus()
    page.keyboard.press("Space")
    expect(player.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press("3")
    expect(switches.nth(2)).to_have_attribute("aria-pressed", "true")
    expect(switches.nth(0)).to_have_attribute("aria-pressed", "false")
    switches.nth(1).click()
    expect(switches.nth(1)).to_have_attribute("aria-pressed", "true")
    before = player.evaluate("player => player.tracks.position")
    page.keyboard.press("ArrowRight")
    assert player.evaluate("player => player.tracks.position") >= min(before + 4.9, SECONDS - 0.1)
    page.keyboard.press("Space")
    expect(player.get_by_role("button", name="Play")).to_be_visible()
    assert switches.nth(1).evaluate("one => one === document.activeElement")
    assert switches.nth(1).evaluate("one => getComputedStyle(one).outlineStyle") == "solid"


def test_from_a_disk_versions_play_together_and_a_switch_keeps_the_position(opened: Opened, music: Path) -> None:
    page = opened(music / "index.html")
    player = page.locator("compare-player").first
    player.get_by_role("button", name="Play").click()
    at = "player => player.tracks?.elements?.map(element => element.currentTime) ?? [0]"
    page.wait_for_function("() => document.querySelector('compare-player').tracks?.position > 0.5")
    page.wait_for_function(  # those that aren't heard have caught up
        "() => { const at = document.querySelector('compare-player').tracks.elements.map(one => one.currentTime);"
        "return Math.max(...at) - Math.min(...at) < 0.02; }"
    )
    before = player.evaluate(at)
    page.keyboard.press("2")
    page.wait_for_function("() => document.querySelector('compare-player').tracks.elements[1].volume === 1")
    found = player.evaluate("player => player.tracks.elements.map(one => [one.paused, one.muted, one.volume > 0.001])")
    assert found == [[False, False, False], [False, False, True], [False, False, False]]
    after = player.evaluate(at)
    assert max(after) - min(after) < 0.02 and min(after) > min(before)
    assert all(url.startswith("file:") for url in opened.requests)


def vote_blind(page: Page, number: int) -> None:
    player = page.locator("compare-player").nth(number)
    player.get_by_role("button", name="Blind comparison").click()
    expect(player.locator(".switch")).to_have_text(["A", "B"])
    section = page.locator("section").nth(number)
    assert not {"Base model", "Strength", "generated_", "jazz/"} & set(section.inner_text().split())
    expect(section.locator("article").first).to_be_hidden()
    assert "Strength" not in section.inner_text() and "adapter" not in section.inner_text()
    page.keyboard.press("b")
    expect(player.locator(".switch").nth(1)).to_have_attribute("aria-pressed", "true")
    player.get_by_role("button", name="B is better").click()
    expect(player.get_by_role("status")).to_contain_text("Recorded. A was")
    expect(section.locator("article").first).to_be_visible()


def test_blind_votes_are_kept_in_the_browser_and_saved_as_a_file(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(address)
    vote_blind(page, 0)
    vote_blind(page, 1)
    page.reload()
    vote_blind(page, 1)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Save votes.jsonl (3)").click()
    waiting.value.save_as(tmp_path / "votes.jsonl")
    votes, unreadable = read_votes(UPath(tmp_path / "votes.jsonl"))
    assert len(votes) == 3 and unreadable == 0
    assert all(vote.vote == "b" and vote.seed == 7 and vote.time.startswith("20") for vote in votes)
    assert [vote.prompt for vote in votes] == ["Relaxing jazz piano", "Slow strings", "Slow strings"]
    assert {votes[1].a.file, votes[1].b.file} == {"generated_003.wav", "generated_004.wav"}
    assert sum(pair.for_first + pair.for_second for pair in tally(votes)) == 3


def test_the_order_shown_follows_from_the_seed_of_the_vote(page: Page, address: str) -> None:
    page.goto(address)
    page.evaluate("() => { crypto.getRandomValues = array => array.fill(globalThis.seed); }")
    orders = []
    for seed in (0, 1, 2, 3, 4, 5, 0, 1):
        page.evaluate("value => { globalThis.seed = value; }", seed)
        player = page.locator("compare-player").first
        player.evaluate("player => player.setBlind(true)")
        orders.append(tuple(player.evaluate("player => player.pair.map(piece => piece.file)")))
    assert orders[:2] == orders[6:] and len(set(orders)) > 2


def test_without_scripts_the_page_has_players_of_the_browser(opened: Opened, music: Path) -> None:
    page = opened(music / "index.html", java_script_enabled=False)
    expect(page.locator("audio[controls]")).to_have_count(5)
    expect(page.locator("audio[controls]").first).to_be_visible()
    expect(page.locator("compare-player").first).to_be_hidden()


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 390, "dark")]
)
def test_the_player_fits_its_window(
    page: Page, address: str, screenshots: Path, name: str, width: int, scheme: Any
) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(address)
    player = page.locator("compare-player").first
    player.get_by_role("button", name="Play").click()
    page.keyboard.press("2")
    page.wait_for_function("() => document.querySelector('compare-player').tracks?.position > 1.5")
    page.keyboard.press("Space")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=screenshots / f"player-{name}.png")
    vote_blind(page, 1)
    page.locator("section").nth(1).screenshot(path=screenshots / f"player-blind-{name}.png")

"""The page of a data set, opened from a disk: histograms and labels show, clips that stand out play."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect
from upath import UPath

from musicgen_core.config import ReadingSettings
from musicgen_core.overview.clips import clips_of_lines
from musicgen_core.overview.findings import findings_of
from musicgen_core.overview.page import write_page
from tests.browser.opened import Opened

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
HOSTILE = "<script>document.title = 'taken over'</script>.wav"


def tone() -> bytes:
    """Return six seconds of a sine as a wav."""
    sound = io.BytesIO()
    soundfile.write(sound, 0.3 * np.sin(2 * np.pi * 440 * np.arange(6 * 32_000) / 32_000), 32_000, format="WAV")
    return sound.getvalue()


def write(folder: Path) -> Path:
    """Write the page of 300 clips, of which two are silent and speech."""
    random.seed(0)
    clips: list[dict[str, Any]] = [
        {
            "path": f"{number:03d}.wav",
            "description": "calm piano",
            "tags": ["piano", random.choice(["jazz", "folk"])],
            "tempo": round(random.gauss(110, 15), 1),
            "key": random.choice(["A minor", "C major"]),
            "loudness": round(random.gauss(-18, 3), 1),
            "duration": random.uniform(5, 20),
        }
        for number in range(300)
    ]
    clips[1] |= {"silence": 0.95, "path": HOSTILE}
    clips[2] |= {"speech": 0.9}
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for clip in clips[1:3]:
            archive.writestr(clip["path"], tone())
    lines = (json.dumps(clip).encode() for clip in clips)
    findings = findings_of(clips_of_lines((("a.zip", clip["path"]) for clip in clips), lines))
    write_page(UPath(folder / "dataset.html"), findings, {"a.zip": UPath(folder / "a.zip")}, ReadingSettings())
    return folder / "dataset.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_shows_histograms_and_plays_clips_from_disk(opened: Opened, tmp_path: Path, scheme: str) -> None:
    page = opened(write(tmp_path), color_scheme=scheme)
    expect(page.get_by_role("heading", level=1)).to_have_text("The clips of a data set")

    for name in ("Tempo", "Loudness", "Length"):
        picture = page.get_by_role("img", name=name)
        expect(picture).to_be_visible()
        assert picture.locator("rect").count() > 5
    colours = "bar => [getComputedStyle(bar).fill, getComputedStyle(bar.closest('.card')).backgroundColor]"
    bar, card = page.locator("svg[role=img] rect").first.evaluate(colours)
    assert (bar, card) == {
        "light": ("rgb(31, 111, 180)", "rgb(255, 255, 255)"),
        "dark": ("rgb(111, 177, 234)", "rgb(29, 26, 37)"),
    }[scheme]
    expect(page.get_by_role("table", name="Genres")).to_contain_text("jazz")

    expect(page.get_by_text(HOSTILE)).to_be_visible()
    players = page.locator("audio")
    expect(players).to_have_count(2)
    page.wait_for_function("[...document.querySelectorAll('audio')].every(audio => audio.duration > 4.5)")
    for number in (0, 1):
        players.nth(number).focus()
        players.nth(number).press("Space")
        page.wait_for_function("number => document.querySelectorAll('audio')[number].currentTime > 0.2", arg=number)
    assert players.evaluate_all("all => all.map(one => one.paused)") == [True, False]
    assert page.title() == "The clips of a data set"
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400

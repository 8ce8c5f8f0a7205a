"""The report of an evaluation, opened from a disk: its pictures show, its music plays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect
from upath import UPath

from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.evaluation.generated import NearestPair
from musicgen_core.evaluation.held_out import compare, confidence_interval, verdict_of
from musicgen_core.evaluation.music import Pair
from musicgen_core.evaluation.originality import Excerpt, FeatureDistances, Originality, Overlap
from musicgen_core.evaluation.report import (
    plot_codebook_perplexities,
    plot_differences,
    plot_training,
    write_report,
)
from musicgen_core.evaluation.request import EvaluatedAdapter, Evaluation, MusicScores
from tests.browser.opened import Opened

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]
SECONDS = 4.0


def tone(hertz: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(int(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


def originality() -> Originality:
    nearest = Excerpt("archive_batch_0007.zip", "audio/song_012.wav", 12.4, "Relaxing jazz piano", 3.1, 4.2)
    return Originality(
        seconds=10.0,
        training_clips=132_050,
        base=Overlap(34, 0.004, 0.3, 0.08, 0.05, replace(nearest, seconds=0.3)),
        adapter=Overlap(34, 0.031, 4.2, 0.4, 0.12, nearest),
        held_out=Overlap(32, 0.006, 0.5, 0.1, 0.09, replace(nearest, seconds=0.5)),
        verdict="copies",
        distances=FeatureDistances(96, 61.2, 24.8, 9.3),
    )


def write(target: UPath) -> None:
    """Write a report like that of 500 clips with musicgen-large, from invented losses."""
    rng = np.random.default_rng(0)
    base = rng.normal([3.1, 4.4, 4.9, 5.2], 0.4, size=(500, 4))
    adapted = base + rng.normal([-0.35, -0.2, -0.15, -0.1], 0.15, size=(500, 4))
    means = base.mean(axis=1), adapted.mean(axis=1)
    interval = confidence_interval(*means)
    evaluation = Evaluation(
        adapter=EvaluatedAdapter("/runs/jazz/lora_weights/best_lora.pt", "ab" * 32, 4, 31_240),
        base_model="facebook/musicgen-large@sha256:0123456789abcdef",
        tokens="gs://bucket/tokens",
        validation_fraction=0.05,
        is_held_out=True,
        validation_clips=6_950,
        clips=500,
        codes=3_000_000,
        segment_seconds=30.0,
        loss=compare(*means),
        codebooks=[compare(base[:, k], adapted[:, k]) for k in range(4)],
        interval=interval,
        verdict=verdict_of(interval),
        music=MusicScores("laion/larger_clap_music", 64, 10.0, 0.41, 0.33, 0.38, 0.42, 0.31),
        remarks=["Of 6,950 validation clips 500 were evaluated, as many as asked for, the same each time."],
        report=str(target),
        originality=originality(),
    )
    steps = range(1, 400)
    losses = 4.4 - 0.3 * (1 - np.exp(-np.arange(1, 400) / 80)) + rng.normal(0, 0.05, size=399)
    rows = [{"step": float(step), "train/loss": float(loss)} for step, loss in zip(steps, losses, strict=True)]
    pictures = {
        "Perplexity of each codebook": plot_codebook_perplexities(evaluation.codebooks),
        "Change of the loss": plot_differences(*means),
        "Loss of the training": plot_training(rows),
    }
    pairs = [
        Pair("Relaxing jazz piano", tone(220), tone(330), "After epoch 4"),
        Pair("静かな琴の音色", tone(247), tone(370)),
    ]
    assert evaluation.originality is not None and evaluation.originality.adapter.nearest is not None
    nearest = NearestPair(evaluation.originality.adapter.nearest, tone(220), tone(221))
    write_report(target, evaluation, pictures, {"Samples of the training": pairs}, nearest)


def test_the_report_shows_pictures_and_plays_music_from_disk(opened: Opened, tmp_path: Path, screenshots: Path) -> None:
    write(UPath(tmp_path / "report.html"))
    page = opened(tmp_path / "report.html")
    expect(page.get_by_text("The adapter is better than the base model")).to_be_visible()
    pictures = page.locator("img")
    expect(pictures).to_have_count(3)
    page.wait_for_function("[...document.images].every(one => one.complete)")
    assert pictures.evaluate_all("all => all.map(one => one.naturalWidth)") == [960] * 3

    players = page.locator("audio")
    expect(players).to_have_count(6)
    for number in (0, 1):  # the sample, then the training clip
        players.nth(number).focus()
        players.nth(number).press("Space")
        page.wait_for_function("number => document.querySelectorAll('audio')[number].currentTime > 0.2", arg=number)
    assert players.evaluate_all("all => all.map(one => one.paused)") == [True, False, True, True, True, True]
    assert abs(players.first.evaluate("audio => audio.duration") - SECONDS) < 0.2
    page.screenshot(path=screenshots / "evaluation-report.png", full_page=True)
    page.set_viewport_size({"width": 400, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_a_reports_policy_allows_only_the_report_itself(opened: Opened, tmp_path: Path) -> None:
    write(UPath(tmp_path / "report.html"))
    page_text = (tmp_path / "report.html").read_text()
    injected = "<script>document.title = 'taken over'</script><img src='https://localhost:9/x.png'>"
    (tmp_path / "report.html").write_text(page_text.replace("<main>", f"<main>{injected}", 1))
    page = opened(tmp_path / "report.html")
    page.wait_for_load_state("networkidle")
    assert page.title() == "Evaluation of an adapter"
    assert len(opened.complaints) == 2 and all("Content Security Policy" in text for text in opened.complaints)
    opened.complaints.clear()
    opened.requests.clear()

"""The evaluation report with its plots and music, and the scores of the music."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from upath import UPath

from musicgen_core import storage
from musicgen_core.config import SamplingSettings
from musicgen_core.evaluation import evaluate as module
from musicgen_core.evaluation.music import Pair, music_scores
from musicgen_core.evaluation.report import REPORT, write_report
from musicgen_core.evaluation.request import Evaluation
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.language import translated
from musicgen_core.model.clap import Clap
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import BaseModel
from tests.fixture_types import Evaluate


class Page(HTMLParser):
    """Parsed report: its text, and the references of its elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.sources, self.links, self.tags = "", dict[str, list[str]](), list[str](), list[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if source := found.get("src"):
            self.sources.setdefault(tag, []).append(source)
        if link := found.get("href"):
            self.links.append(link)

    def handle_data(self, data: str) -> None:
        self.text += data


def decoded(url: str) -> io.BytesIO:
    return io.BytesIO(base64.b64decode(url.partition(";base64,")[2]))


def test_the_json_equals_the_returned_evaluation(copied: Path, evaluation: Evaluation) -> None:
    found = json.loads((copied / "evaluation" / "evaluation.json").read_text())
    assert found["loss"]["difference"] == evaluation.loss.difference
    assert len(found["codebooks"]) == 4
    assert found["adapter"]["sha256"] == storage.content_sha256(UPath(copied / "lora_weights" / "best_lora.pt"))
    assert found["base_model"].startswith("local@sha256:")


def test_the_report_is_translated_and_the_json_is_english(
    copied: Path, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSICGEN_LANGUAGE", "ja")
    target = UPath(tmp_path / "report.html")
    write_report(target, evaluation, {}, {})
    page = Page(tmp_path / "report.html")
    for text in (
        "アダプタの評価",
        "アダプタはベースモデルより良くなったか",
        translated(evaluation.sentence()),
        "トークン",
    ):
        assert text in page.text
    assert evaluation.sentence() not in page.text and "コードで" not in page.text
    assert REPORT.is_at(target)


def test_the_page_is_self_contained_with_plots_and_music(copied: Path, evaluation: Evaluation) -> None:
    page = Page(copied / "evaluation" / "report.html")
    assert evaluation.sentence() in page.text
    for one in (evaluation.loss, *evaluation.codebooks):
        assert f"{one.base_loss:.4f}" in page.text and f"{one.adapter_perplexity:.2f}" in page.text
    everything = [*page.links, *(source for sources in page.sources.values() for source in sources)]
    assert all(source.startswith("data:") for source in everything)
    assert "b" not in page.tags and "slow <b>piano</b>" in page.text  # a prompt is text
    pictures = [Image.open(decoded(url)) for url in page.sources["img"]]
    assert [picture.size for picture in pictures] == [(960, 540)] * 3
    assert all(len(picture.convert("RGB").getcolors(10**6) or []) > 20 for picture in pictures)


def test_samples_of_the_run_are_paired_with_the_base_model_first(copied: Path, evaluation: Evaluation) -> None:
    page = Page(copied / "evaluation" / "report.html")
    heard = [soundfile.read(decoded(url), dtype="float32")[0] for url in page.sources["audio"]]
    epoch = evaluation.adapter.epoch
    assert page.text.count("Base model") == 3 and page.text.count(f"After epoch {epoch}") == 2  # and among the facts
    names = [f"epoch_{number:03d}_{i:02d}.wav" for i in (0, 1) for number in (0, epoch)]
    for found, name in zip(heard, names, strict=True):
        expected, _ = soundfile.read(copied / "samples" / name, dtype="float32")
        assert found.shape == expected.shape and np.corrcoef(found, expected)[0, 1] > 0.9


def test_prompts_are_rendered_as_by_generate_compare(
    debug_model: BaseModel, trained: Path, run: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, Any] = {}
    monkeypatch.setattr(module, "write_report", lambda *given: written.update(given[3]))
    run(trained, tmp_path / "out", max_clips=2, prompts=["calm", "fast"], duration=0.4, seed=5)
    [first, second] = written["Rendered for this report"]
    pieces = render(
        RenderRequest(
            str(tmp_path / "music"),
            [Prompt(prompt="calm"), Prompt(prompt="fast")],
            str(debug_model.directory),
            SamplingSettings(duration=0.4, seed=5),
            [WeightedAdapter(str(trained))],
            compare=True,
            device="cpu",
        )
    )
    expected = [soundfile.read(piece.wav, dtype="float32")[0] for piece in pieces]
    for found, wanted in zip((first.base, first.adapter, second.base, second.adapter), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(first.base, first.adapter)


def test_missing_or_broken_samples_do_not_fail_the_report(
    trained: Path, run: Evaluate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "jazz"))
    for file in (root / "samples").glob("epoch_00*_00.wav"):
        file.write_bytes(b"no sound")
    assert "<audio" not in Path(run(root, max_clips=2).report).read_text()
    assert "samples" in caplog.text
    shutil.rmtree(root / "samples")
    (root / "metrics.jsonl").unlink()
    page = Path(run(root, max_clips=2).report).read_text()
    assert "<audio" not in page and page.count("<img ") == 1  # of the codebooks: two clips are no distribution


def test_clap_scores_are_reported_and_reproducible(
    trained: Path, run: Evaluate, tmp_path: Path, clap_weights: Path
) -> None:
    def scored(name: str) -> Evaluation:
        return run(trained, tmp_path / name, clap_weights=str(clap_weights), clap_clips=4, duration=0.5)

    scores = scored("first").music
    assert scores is not None and (scores.clips, scores.seconds) == (4, 0.5)
    assert len({scores.clips_clap_score, scores.base_clap_score, scores.adapter_clap_score}) == 3
    assert min(scores.base_frechet_distance, scores.adapter_frechet_distance) > 0
    assert scored("second").music == scores
    page = Page(tmp_path / "first" / "report.html")
    assert f"{scores.adapter_frechet_distance:.4f}" in page.text and str(clap_weights) in page.text


def test_music_equal_to_the_clips_has_their_score_and_distance_0(clap_weights: Path) -> None:
    rng = np.random.default_rng(0)
    clips, other = (rng.normal(0, 0.1, size=(2, 5, 16_000)).astype(np.float32) * [[[1]], [[0.01]]]).astype(np.float32)
    texts = [f"tune {i}" for i in range(5)]
    pairs = [Pair(text, base, adapter) for text, base, adapter in zip(texts, other, clips, strict=True)]
    found = music_scores(Clap(str(clap_weights)), "toy", texts, list(clips), pairs)
    assert found.adapter_clap_score == found.clips_clap_score != found.base_clap_score
    assert found.adapter_frechet_distance == pytest.approx(0, abs=1e-9)
    assert found.base_frechet_distance > 1e-4

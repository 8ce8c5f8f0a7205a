"""Samples beside training clips and held-out clips: verdicts, the nearest clip, distances, and where they are shown."""

from __future__ import annotations

import html
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import soxr
import torch
from pydantic import TypeAdapter
from upath import UPath

from deployments.commands import evaluated_rows
from musicgen_core import storage
from musicgen_core.captioning.musicnn import Musicnn
from musicgen_core.codec import Codec
from musicgen_core.codes import SAMPLE_RATE, SAMPLES_PER_FRAME
from musicgen_core.data.dataset import Clips, load_clips
from musicgen_core.evaluation import evaluate as module
from musicgen_core.evaluation import feature_space
from musicgen_core.evaluation.evaluate import stored_evaluation
from musicgen_core.evaluation.feature_space import feature_distances
from musicgen_core.evaluation.generated import NearestPair, compare_samples
from musicgen_core.evaluation.music import Pair
from musicgen_core.evaluation.originality import Originality
from musicgen_core.evaluation.report import write_report
from musicgen_core.evaluation.request import Evaluation
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.weights import BaseModel
from tasks.summary import evaluated_section
from tests.fixture_types import Evaluate

HELD_OUT, TRAINING = list(range(4)), np.arange(8, 40)
TARGET = 39
"""The longest of the clips, of 89 frames"""


@pytest.fixture(scope="module")
def clips(tokens: Path, debug_model: BaseModel) -> Clips:
    return load_clips(storage.as_path(tokens), codec_identity(debug_model))


@pytest.fixture(scope="module")
def codec(debug_model: BaseModel) -> Codec:
    return Codec(debug_model)


def pair_of(prompt: str, base: Any, adapter: Any) -> Pair:
    sounds = [np.zeros(codes.shape[1] * SAMPLES_PER_FRAME, dtype=np.float32) for codes in (base, adapter)]
    return Pair(prompt, sounds[0], sounds[1], base_codes=base, adapter_codes=adapter)


def samples_of(*adapters: Any) -> list[Pair]:
    """Return pairs with the given codes of the adapter, and random ones of the base model."""
    rng = np.random.default_rng(3)
    return [
        pair_of(f"tune {i}", rng.integers(2048, size=codes.shape).astype(np.uint16), codes)
        for i, codes in enumerate(adapters)
    ]


@pytest.fixture(scope="module")
def compare(clips: Clips, codec: Codec, tokens: Path) -> Any:
    def call(pairs: list[Pair], training: Any = TRAINING) -> tuple[Originality, NearestPair | None]:
        heard: list[tuple[int, int]] = []
        found = compare_samples(
            pairs=pairs,
            clips=clips,
            held_out=HELD_OUT,
            others=[4, 5],
            training=training,
            tokens=storage.as_path(tokens),
            codec=codec,
            on_progress=lambda done, total, text: heard.append((done, total)),
        )
        assert heard == [(0, len(training))][: len(training)]
        return found

    return call


def random_codes(seed: int, frames: int = 100) -> np.ndarray:
    return np.random.default_rng(seed).integers(2048, size=(4, frames)).astype(np.uint16)


def test_a_planted_copy_is_named_and_can_be_heard(compare: Any, clips: Clips) -> None:
    samples = [random_codes(i) for i in range(4)]
    samples[2][:, 20:80] = clips.codes_of(TARGET)[:, 10:70]
    found, nearest = compare(samples_of(*samples))
    assert found.verdict == "copies" and found.training_clips == len(TRAINING)
    assert found.base.longest_seconds == found.held_out.longest_seconds == 0
    excerpt = found.adapter.nearest
    assert (excerpt.archive, excerpt.clip) == ("archive_batch_0000.zip", f"clip_{TARGET}.wav")
    assert (excerpt.seconds, excerpt.start, excerpt.clip_start, excerpt.text) == (1.2, 0.4, 0.2, "tune 2")
    assert found.adapter.longest_seconds == 1.2 and found.adapter.mean_longest_seconds == pytest.approx(0.3)
    assert "may be copied" in found.sentence() and "1.2 s" in found.sentence()
    assert nearest is not None and len(nearest.sample) == len(nearest.clip) == (10 + 60 + 19) * SAMPLES_PER_FRAME


def test_samples_that_share_more_than_held_out_clips_are_noticed(compare: Any, clips: Clips) -> None:
    samples = [random_codes(i) for i in range(4)]
    for i, sample in enumerate(samples):
        sample[:, :25] = clips.codes_of(20 + i)[:, :25]  # 0.5 s each
    found, _ = compare(samples_of(*samples))
    assert found.verdict == "more" and "more in common" in found.sentence()
    assert found.adapter.shared == pytest.approx(16 / 91, abs=0.01) and found.base.shared == 0


def test_random_music_and_the_held_out_clips_themselves_are_not_accused(compare: Any, clips: Clips) -> None:
    for samples in ([random_codes(i) for i in range(4)], [clips.codes_of(i) for i in HELD_OUT]):
        found, nearest = compare(samples_of(*samples))
        assert found.verdict == "no more" and nearest is None and found.adapter.nearest is None
        assert found.adapter.shared == found.held_out.shared == 0


def test_without_training_clips_nothing_is_said_about_copying(compare: Any) -> None:
    found, nearest = compare(samples_of(*(np.tile(random_codes(i, 50), 2) for i in range(4))), TRAINING[:0])
    assert (found.verdict, nearest) == ("unknown", None)
    assert found.adapter.repeated == pytest.approx(41 / 91) and found.base.repeated == 0
    assert "can't be judged" in found.sentence()


def test_distances_are_those_of_the_formula_with_a_matrix_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_space, "FEWEST_WINDOWS", 6)
    rng = np.random.default_rng(0)
    time = np.arange(9 * SAMPLE_RATE) / SAMPLE_RATE

    def sounds(low: int) -> list[np.ndarray]:
        tones = [np.sin(2 * np.pi * rng.uniform(low, 2 * low) * time) for _ in range(2)]
        return [(0.1 * tone + rng.normal(0, 0.01, size=len(time))).astype(np.float32) for tone in tones]

    held_out, adapter = sounds(200), sounds(1_000)
    found = feature_distances(held_out, held_out, adapter, held_out[:1], torch.device("cpu"))
    assert found is not None and found.windows == 6 and found.held_out is None
    assert found.base == pytest.approx(0, abs=1e-3)
    features = []
    for group in (held_out, adapter):
        windows = np.concatenate([soxr.resample(sound, 32_000, 16_000).reshape(3, -1) for sound in group])
        features.append(Musicnn(torch.device("cpu")).predict(torch.from_numpy(windows)).features.double().numpy())
    # A little noise in all dimensions, as a singular product has no unique root.
    first, second = (np.cov(points.T) + 1e-6 * np.eye(400) for points in features)
    root = scipy.linalg.sqrtm(first @ second).real
    shift = features[0].mean(axis=0) - features[1].mean(axis=0)
    assert found.adapter == pytest.approx(shift @ shift + np.trace(first + second - 2 * root), rel=0.01)


def test_too_few_windows_give_no_distance() -> None:
    sound = np.zeros(15 * SAMPLE_RATE, dtype=np.float32)
    assert feature_distances([sound] * 3, [sound] * 3, [sound] * 3, [], torch.device("cpu")) is None


def test_samples_are_as_long_as_their_clips_and_generated_once_for_all_scores(
    trained: Path, run: Evaluate, tmp_path: Path, clap_weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    rendered: list[list[Pair]] = []
    own = module.render_described
    monkeypatch.setattr(module, "render_described", lambda *a, **k: rendered.append(own(*a, **k)) or rendered[-1])
    with caplog.at_level(logging.INFO):
        found = run(trained, tmp_path, samples=3, clap_weights=str(clap_weights), clap_clips=2, prompts=["calm"])
    [pairs] = rendered
    assert "making 6 samples of up to 10 s: one of each model from each of 3 descriptions" in caplog.text
    assert found.originality is not None and found.music is not None
    assert found.originality.adapter.samples == found.originality.base.samples == 4  # with the prompt's
    assert found.originality.held_out.samples == len(pairs) == 3 and found.music.clips == 2
    assert all(1.0 <= len(pair.adapter) / SAMPLE_RATE < 1.8 for pair in pairs)
    assert all(pair.adapter_codes.shape == (4, len(pair.adapter) // SAMPLES_PER_FRAME) for pair in pairs)


def test_by_default_eight_samples_are_made_on_a_cpu_and_zero_turns_it_off(
    evaluation: Evaluation, copied: Path, trained: Path, run: Evaluate, tmp_path: Path
) -> None:
    assert evaluation.originality is not None and evaluation.originality.adapter.samples == 8
    assert evaluation.originality.distances is None  # of clips under 3 s
    assert run(trained, tmp_path, samples=0, prompts=["calm"], duration=0.4).originality is None


def test_files_of_earlier_versions_are_read(copied: Path, evaluation: Evaluation) -> None:
    assert stored_evaluation(copied) == evaluation
    content = json.loads((copied / "evaluation" / "evaluation.json").read_text())
    del content["originality"]
    assert TypeAdapter(Evaluation).validate_python(content) == replace(evaluation, originality=None)


def test_findings_are_in_the_report_the_summary_and_the_terminal(
    evaluation: Evaluation, compare: Any, clips: Clips, tmp_path: Path
) -> None:
    samples = [random_codes(i) for i in range(4)]
    samples[2][:, 20:80] = clips.codes_of(TARGET)[:, 10:70]
    originality, nearest = compare(samples_of(*samples))
    shown = replace(evaluation, originality=originality)
    write_report(UPath(tmp_path / "report.html"), shown, {}, {}, nearest)
    page = html.unescape((tmp_path / "report.html").read_text())
    assert originality.sentence() in page and page.count("<audio ") == 2 and f"clip_{TARGET}.wav" in page
    assert "There is too little music for a Fréchet distance" in page
    section = evaluated_section(shown)
    assert "### Does it copy?" in section and f"clip_{TARGET}.wav" in section and "| longest run (s) |" in section
    rows = dict(evaluated_rows(shown))
    assert rows["does it copy?"] == originality.sentence()
    assert rows["  nearest clip"] == originality.adapter.nearest.sentence()

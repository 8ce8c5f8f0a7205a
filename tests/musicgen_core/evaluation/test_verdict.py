"""Better, worse or undecided: the confidence interval of the paired differences, and the sentence about it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from musicgen_core.evaluation.held_out import compare, confidence_interval, verdict_of
from musicgen_core.evaluation.request import Evaluation
from musicgen_core.model.adapters import Adapter, load_adapter, save_adapter
from musicgen_core.model.weights import BaseModel
from tests.fixture_types import Evaluate

pytestmark = pytest.mark.usefixtures("blank_plots")


def test_verdicts_distinguish_better_from_worse_adapters(
    debug_model: BaseModel, trained: Path, evaluation: Evaluation, run: Evaluate, tmp_path: Path
) -> None:
    assert evaluation.verdict == "better" and evaluation.interval is not None
    low, high = evaluation.interval
    assert low < evaluation.loss.difference < high < -0.1
    assert evaluation.sentence().startswith("The adapter is better than the base model: loss ")

    adapter = load_adapter(UPath(trained / "lora_weights" / "best_lora.pt"))
    harmful = {name: -value if "lora_B" in name else value for name, value in adapter.lora.items()}
    save_adapter(Adapter(**{**vars(adapter), "lora": harmful}), UPath(tmp_path / "harmful_lora.pt"))
    worse = run(tmp_path / "harmful_lora.pt", validation_fraction=0.3)
    assert worse.verdict == "worse" and worse.loss.difference > 0.1
    assert worse.loss.base_loss == pytest.approx(
        run(trained, tmp_path / "again", segment_seconds=30).loss.base_loss, abs=1e-9
    )


def test_error_and_interval_are_those_of_paired_differences() -> None:
    base, change = np.array([5.0, 1.0, 3.0, 7.0]), np.array([-0.1, -0.3, -0.2, -0.2])
    found = compare(base, base + change)
    assert found.difference == pytest.approx(-0.2)
    assert found.standard_error == pytest.approx(math.sqrt(0.02 / 3 / 4))
    assert found.base_perplexity == pytest.approx(math.exp(4))
    interval = confidence_interval(base, base + change)
    half = 3.1824463052837078 * math.sqrt(0.02 / 3 / 4)  # Student's t with 3 degrees of freedom, at 97.5 %
    assert interval == pytest.approx((-0.2 - half, -0.2 + half), abs=1e-9)
    assert (verdict_of(interval), verdict_of((0.1, 0.2)), verdict_of((-0.1, 0.2))) == ("better", "worse", "undecided")


@pytest.mark.filterwarnings("error")
def test_the_interval_of_equal_differences_has_no_width() -> None:
    assert confidence_interval(np.array([5.0, 1.0]), np.array([4.5, 0.5])) == (-0.5, -0.5)


def test_a_single_clip_decides_nothing(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    found = run(trained, tmp_path, max_clips=1)
    assert (found.verdict, found.interval, found.loss.standard_error) == ("undecided", None, None)
    assert found.sentence().startswith("One clip can't tell")


def test_the_sentence_has_a_caveat_for_few_clips(
    trained: Path, evaluation: Evaluation, run: Evaluate, tmp_path: Path
) -> None:
    assert evaluation.clips >= 8 and "prove little" not in evaluation.sentence()
    found = run(trained, tmp_path, max_clips=3)
    assert "on these clips, but so few prove little: loss " in found.sentence()
    pages = [Path(one.report).read_text(encoding="utf-8") for one in (evaluation, found)]
    assert ["change over clips" in page for page in pages] == [True, False]  # a distribution of three says nothing


def test_the_confidence_interval_has_its_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        low, high = confidence_interval(np.zeros(6), rng.normal(0.5, 1, size=6)) or (0, 0)
        held += low <= 0.5 <= high
    assert 925 <= held <= 975

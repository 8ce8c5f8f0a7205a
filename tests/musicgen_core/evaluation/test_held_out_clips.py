"""Only clips that the adapter has not learned from are evaluated, or there is a warning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from musicgen_core.errors import ConfigError
from musicgen_core.evaluation.evaluate import evaluate
from musicgen_core.evaluation.request import EvaluateRequest, Evaluation
from tests.fixture_types import Evaluate
from tests.musicgen_core.evaluation.conftest import CLIPS

pytestmark = pytest.mark.usefixtures("blank_plots")


def test_an_adapter_without_a_run_is_evaluated_with_a_warning(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    shutil.copy(trained / "lora_weights" / "best_lora.pt", tmp_path / "sent_lora.pt")
    found = run(tmp_path / "sent_lora.pt")
    assert found.report == str(tmp_path / "sent_lora_evaluation" / "report.html")
    assert found.validation_fraction == 0.05 and found.segment_seconds == 30
    [remark] = found.remarks
    assert "lies in no run directory" in remark and "any adapter looks better" in remark
    assert found.verdict == "undecided" and found.loss.difference < 0
    assert (
        "that the adapter may have learned from" in found.sentence()
        and "adapter is better than" not in found.sentence()
    )


def test_clips_that_the_adapter_has_learned_from_are_left_out(
    trained: Path, run: Evaluate, evaluation: Evaluation, tmp_path: Path
) -> None:
    found = run(trained, tmp_path, validation_fraction=0.9)
    assert (found.clips, found.loss, found.verdict) == (evaluation.clips, evaluation.loss, "better")
    assert found.is_held_out and "clips were left out: the adapter has learned from them" in found.remarks[0]
    assert found.validation_fraction == found.clips / CLIPS
    fewer = run(trained, tmp_path, validation_fraction=0.2)
    assert fewer.clips < found.clips and fewer.remarks == []


@pytest.mark.parametrize("there", [True, False])
def test_clips_trained_on_by_an_earlier_run_are_left_out(
    there: bool, trained: Path, run: Evaluate, evaluation: Evaluation, tmp_path: Path
) -> None:
    """The run held out more than the run that it started from."""
    first, second = (Path(shutil.copytree(trained, tmp_path / name)) for name in ("first", "second"))
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"validation_fraction": 0.1}))
    init = first / "lora_weights" / "best_lora.pt"
    (second / "config.json").write_text(json.dumps(config | {"init_adapter": str(init)}))
    if not there:
        shutil.rmtree(first)
    found = run(second, tmp_path / "out")
    assert found.is_held_out == there
    if there:
        assert found.clips < evaluation.clips and "learned from them" in found.remarks[0]
    else:
        assert found.clips == evaluation.clips and found.verdict == "undecided"
        assert f"started from {init}" in found.remarks[0] and "may have learned from" in found.sentence()


def test_a_run_that_held_nothing_out_needs_other_tokens(
    trained: Path, request_for: Callable[..., EvaluateRequest], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "jazz"))
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"validation_fraction": 0}))
    with pytest.raises(ConfigError, match=r"held no clips out .*Give --validation-fraction with tokens"):
        evaluate(request_for(adapter=str(root)))
    with pytest.raises(ConfigError, match=r"has learned from all of the .* held out 0 of the clips"):
        evaluate(request_for(adapter=str(root), validation_fraction=0.2))

"""Where evaluations are written and found again, and which files are never written over."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.evaluation import evaluate as module
from musicgen_core.evaluation.evaluate import evaluate, stored_evaluation
from musicgen_core.evaluation.request import EvaluateRequest, Evaluation
from tests.fixture_types import Evaluate
from tests.stand_in_hub import StandInHub

pytestmark = pytest.mark.usefixtures("blank_plots")


def test_the_run_directory_holds_the_best_adapters_evaluation(
    copied: Path, evaluation: Evaluation, run: Evaluate
) -> None:
    assert evaluation.report == str(copied / "evaluation" / "report.html")
    assert {path.name for path in (copied / "evaluation").iterdir()} == {"evaluation.json", "report.html"}
    assert evaluation.segment_seconds == 1.2 and evaluation.validation_fraction == 0.3  # as trained
    other = run(copied / "lora_weights" / "lora_epoch_1.pt")
    assert other.report == str(copied / "evaluation" / "lora_epoch_1" / "report.html")
    assert other.adapter.epoch == 1 and stored_evaluation(copied) == evaluation


def test_an_object_store_holds_all_of_it(trained: Path, run: Evaluate, bucket: UPath) -> None:
    for file in sorted(trained.rglob("*")):
        if file.is_file():
            storage.upload(file, bucket.joinpath("jazz", *file.relative_to(trained).parts))
    found = run(bucket / "jazz")
    assert found.report == f"{bucket}/jazz/evaluation/report.html"
    assert stored_evaluation(bucket / "jazz") == found
    page = (bucket / "jazz" / "evaluation" / "report.html").read_text()
    assert page.count("<audio ") == 4 and page.count("<img ") == 3


def test_a_stored_evaluation_must_be_complete_and_of_the_best(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "jazz"))
    assert stored_evaluation(root) is None
    found = run(root, max_clips=3)
    assert stored_evaluation(root) == found
    report = root / "evaluation" / "report.html"
    report.rename(tmp_path / "away")
    assert stored_evaluation(root) is None
    (tmp_path / "away").rename(report)
    shutil.copy(root / "lora_weights" / "lora_epoch_1.pt", root / "lora_weights" / "best_lora.pt")
    assert stored_evaluation(root) is None
    (root / "evaluation" / "evaluation.json").write_text('{"adapter": 1}')
    assert stored_evaluation(root) is None


def test_an_interrupted_evaluation_leaves_no_older_json(
    trained: Path, run: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(trained, tmp_path, max_clips=2)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_report", full)
    with pytest.raises(OSError, match="No space"):
        run(trained, tmp_path, max_clips=3)
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.parametrize("name", ["evaluation.json", "report.html"])
def test_an_output_with_files_of_others_is_refused(name: str, trained: Path, run: Evaluate, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} is not of this program"):
        run(trained, tmp_path)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["evaluation.json", "report.html"])
def test_a_pipe_at_a_reports_path_is_refused_without_blocking(
    name: str, trained: Path, run: Evaluate, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match=f"{name} is not of this program"):
        run(trained, tmp_path)


def test_the_evaluation_of_another_adapter_is_not_written_over(trained: Path, run: Evaluate, tmp_path: Path) -> None:
    found = run(trained, tmp_path, max_clips=2)
    with pytest.raises(ConfigError, match=r"evaluation.json is of another adapter, .*best_lora.pt"):
        run(trained / "lora_weights" / "lora_epoch_1.pt", tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["adapter"]["sha256"] == found.adapter.sha256


def test_adapters_of_one_name_on_the_hub_keep_their_evaluations(
    hub: StandInHub,
    request_for: Callable[..., EvaluateRequest],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for user, name in (("one", "best_lora.pt"), ("two", "lora_epoch_1.pt")):
        (tmp_path / user).mkdir()
        shutil.copy(trained / "lora_weights" / name, tmp_path / user / "best_lora.pt")
        hub.add(f"{user}/jazz", tmp_path / user)
    for _ in range(2):
        evaluate(request_for(adapter="one/jazz", output=None, max_clips=2))
    with pytest.raises(ConfigError, match=r"jazz_evaluation/evaluation.json is of another adapter, one/jazz@"):
        evaluate(request_for(adapter="two/jazz", output=None, max_clips=2))

"""Runs for models that take a melody, in a directory of tokens of one that takes none."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flows.tokenize_archives import TokenizeResult, tokenize_archives
from musicgen_core.errors import ConfigError
from musicgen_core.model.weights import find_model
from musicgen_core.separation.weights import REPO
from tests.melody_model import make_melody_model
from tests.stand_in_hub import StandInHub

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "one.wav", 0.5 * np.sin(np.arange(6_400) / 10), 32_000)
    with zipfile.ZipFile(tmp_path / "batch_1.zip", "w") as archive:
        archive.write(tmp_path / "one.wav", "one.wav")
    return tmp_path / "batch_1.zip"


def run(archives: Path, tokens: Path, model: str, **given: Any) -> Any:
    places = {"archives": str(archives), "tokens": str(tokens)}
    state = tokenize_archives(**places, model=model, device="cpu", return_state=True, **given)
    return state.result(raise_on_failure=False)


def test_archives_are_encoded_again_for_their_melodies_and_then_kept(archive: Path, tmp_path: Path) -> None:
    melody_model = make_melody_model(tmp_path / "melody", find_model("debug")).name
    results: list[TokenizeResult] = [
        run(archive, tmp_path / "tokens", model) for model in ("debug", melody_model, "debug")
    ]
    assert [result.reports[0].chroma for result in results] == [None, "v1/mix", "v1/mix"]
    again, kept = (" ".join(result.remarks) for result in results[1:])
    assert "1 archive tokenized before: encoded again for the melodies" in again
    assert "1 archive tokenized before: not encoded again" in kept


def test_separating_melodies_for_a_model_without_ends_the_run_before_its_tasks(
    hub: StandInHub, demucs_weights: Path, archive: Path, tmp_path: Path
) -> None:
    hub.add(REPO, demucs_weights)
    error = run(archive, tmp_path / "tokens", "debug", separate_melody=True)
    assert isinstance(error, ConfigError) and "--separate-melody" in error.found and "debug" in error.found
    assert not list((tmp_path / "tokens").iterdir())

"""The findings of `musicgen-flows doctor` about a model's files and the keys of the Hub and of WandB."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from deployments.checks.finding import Finding
from deployments.checks.keys import check_keys
from deployments.checks.models import check_model_files
from musicgen_core import storage
from musicgen_core.errors import ModelError
from musicgen_core.model.compression import ENCODEC
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.model.hub import T5, fetch
from musicgen_core.model.local_files import CODEC_FILE
from musicgen_core.model.model_size import measure_model
from musicgen_core.model.weights import find_model
from musicgen_core.training.request import TrainResult
from tasks.outcomes import trained
from tasks.training_page import wandb_line
from tests.stand_in_hub import TOKEN, Fault, Repository, StandInHub
from tests.transformers_model import in_transformers

MODEL = "facebook/musicgen-large"


@pytest.fixture
def filled(hub: StandInHub) -> StandInHub:
    """A Hub with a model, and its T5 beside it."""
    repository = hub.add(MODEL, debug_model_directory())
    repository.files = {name: data for name, data in repository.files.items() if "/" not in name}
    for name in ("t5-base", "t5-small"):
        hub.add(name, debug_model_directory() / "text_encoder")
    return hub


def check() -> Finding:
    [finding] = check_model_files(MODEL)
    return finding


def token() -> Finding:
    return next(finding for finding in check_keys([]) if finding.check == "HF_TOKEN")


def test_missing_downloads_are_listed(filled: StandInHub) -> None:
    assert check().level == "ok" and f"{MODEL}, t5-base: not on this machine yet" in check().found
    assert filled.fetched() == []
    find_model(MODEL)
    assert check().found.startswith("t5-small: not on this machine yet")
    fetch("t5-small", T5)
    assert check().found.endswith("are on this machine")


@pytest.mark.parametrize("name", ["debug", "demo"])
def test_built_in_models_need_no_hub(hub: StandInHub, name: str) -> None:
    [finding] = check_model_files(name)
    assert finding.level == "ok" and measure_model(name).download_bytes == 0
    assert hub.requests == []


@pytest.mark.usefixtures("filled")
def test_missing_files_are_a_problem_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert check().level == "problem" and f"{MODEL}, t5-base" in check().found


def test_offline_a_missing_text_encoder_is_a_problem(filled: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    find_model(MODEL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert check().level == "problem" and check().found.startswith("t5-small: not complete")
    filled.requests.clear()


def test_a_codec_that_points_to_the_hub_is_looked_for(hub: StandInHub, tmp_path: Path) -> None:
    shutil.copytree(debug_model_directory(), tmp_path / "model")
    torch.save({"pretrained": "some/codec"}, tmp_path / "model" / CODEC_FILE)
    hub.repositories["some/codec"] = Repository({"config.json": b"{}", "model.safetensors": b"m"})
    [finding] = check_model_files(str(tmp_path / "model"))
    assert finding.found.startswith("some/codec: not on this machine yet")
    fetch("some/codec", ENCODEC)
    [finding] = check_model_files(str(tmp_path / "model"))
    assert finding.found.endswith("are on this machine")


def test_a_model_in_transformers_format_is_measured_and_complete(filled: StandInHub, tmp_path: Path) -> None:
    debug = find_model("debug")
    in_transformers(debug).save_pretrained(tmp_path / "model")
    local, expected = measure_model(str(tmp_path / "model")), measure_model("debug")
    assert (local.parameters, local.widths, local.file_bytes) == (
        expected.parameters,
        expected.widths,
        expected.file_bytes,
    )
    [finding] = check_model_files(str(tmp_path / "model"))
    assert finding.found.startswith("t5-small: not on this machine yet")  # of which it takes the tokenizer
    AutoTokenizer.from_pretrained(debug.text_encoder).save_pretrained(tmp_path / "model")
    filled.add("somebody/tuned", tmp_path / "model")
    for name in (str(tmp_path / "model"), find_model("somebody/tuned").name):
        [finding] = check_model_files(name)
        assert finding.found.endswith("are on this machine") and measure_model(name).parameters == local.parameters


def test_a_hub_that_is_away_is_a_problem_where_files_are_missing(filled: StandInHub) -> None:
    filled.faults.append(Fault(status=503, times=99))
    assert check().level == "problem" and "503" in check().found


def test_no_download_of_a_refused_model_is_advised(hub: StandInHub) -> None:
    for look in (check_model_files, measure_model):
        with pytest.raises(ModelError, match="not supported"):
            look("facebook/musicgen-style")
    assert hub.requests == []


def test_a_stereo_model_is_larger_by_the_embeddings_and_heads_of_four_codebooks(hub: StandInHub) -> None:
    mono, stereo = (measure_model(f"facebook/musicgen-{kind}large").parameters for kind in ("", "stereo-"))
    assert stereo - mono == 4 * (2049 + 2048) * 2048


def test_a_model_that_takes_a_melody_is_smaller_by_its_cross_attention(hub: StandInHub) -> None:
    text, melody = (measure_model(f"facebook/musicgen-{kind}large").parameters for kind in ("", "melody-"))
    assert text - melody == 48 * (4 * 2048**2 + 2 * 2048) - 13 * 2048


def test_a_right_token_is_ok_and_a_wrong_one_a_problem(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert token() == Finding("HF_TOKEN", "ok", "set in the environment, of somebody")
    monkeypatch.setenv("HF_TOKEN", "hf_not-to-be-seen")
    assert token().level == "problem" and "refuses it (401)" in token().found
    assert "not-to-be-seen" not in f"{token()}"
    hub.faults.append(Fault(status=503, times=99))
    assert token().level == "warning" and "could not be asked" in token().found


def test_the_hint_on_uploading_wandbs_files_has_the_same_words_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("deployments.checks.keys._has_saved_token", lambda: False)
    (tmp_path / "first" / "wandb").mkdir(parents=True)
    run = storage.as_path(tmp_path / "first")
    result = TrainResult(str(run), 2, 1, None, None, None, None, 0)
    outcome = next(f"{made.thing}: {made.place}" for made in trained(result, {}).made if "WandB" in made.thing)
    key = next(finding.found for finding in check_keys([]) if finding.check == "WANDB_API_KEY")
    hint = "WandB runs offline. To upload it later: uv run --no-sync wandb sync --no-skip-online "
    assert outcome == wandb_line(run).replace("`", "") == f"{hint}{run}/wandb"
    assert key == f"not there: {hint}RUN_DIR/wandb"

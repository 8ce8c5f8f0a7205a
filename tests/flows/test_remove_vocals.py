"""Runs that remove vocals: Demucs and its weights are looked for once, before anything is read."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from flows.finetune import finetune
from flows.tokenize_archives import TokenizeResult, tokenize_archives
from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.shards import read_report
from musicgen_core.errors import ConfigError, ModelError
from musicgen_core.separation import weights
from musicgen_core.separation.weights import REPO
from tasks.tokenizing import _cache_key
from tests.stand_in_hub import Fault, StandInHub

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Return two archives of a short clip and a broken one each."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for number in (1, 2):
        clip = io.BytesIO()
        soundfile.write(clip, np.random.default_rng(number).uniform(-0.5, 0.5, (20_000, 2)), 44_100, format="WAV")
        with zipfile.ZipFile(folder / f"batch_{number}.zip", "w") as archive:
            archive.writestr("one.wav", clip.getvalue())
            archive.writestr("two.wav", b"none")
    return folder


def run(archives: Path, tokens: Path, remove_vocals: bool = True) -> Any:
    state = tokenize_archives(
        archives=str(archives),
        tokens=str(tokens),
        model="debug",
        device="cpu",
        remove_vocals=remove_vocals,
        return_state=True,
    )
    return state.result(raise_on_failure=False)


def test_a_run_fetches_the_weights_once_and_its_results_are_kept(
    hub: StandInHub, demucs_weights: Path, archives: Path, tmp_path: Path
) -> None:
    hub.add(REPO, demucs_weights)
    tokens = tmp_path / "tokens"
    plain: TokenizeResult = run(archives, tokens, remove_vocals=False)
    assert not hub.requests
    without: TokenizeResult = run(archives, tokens)
    assert sorted(hub.fetched()) == [weights.WEIGHTS_FILE, weights.BAG_FILE]
    assert [(report.clips, len(report.rejected)) for report in without.reports] == [(1, 1), (1, 1)]
    assert not {report.fingerprint for report in plain.reports} & {report.fingerprint for report in without.reports}
    requests = len(hub.requests)
    assert run(archives, tokens).reports == without.reports
    assert len(hub.requests) == requests
    run(archives, tokens, remove_vocals=False)
    assert read_report(storage.as_path(tokens), "batch_1") == plain.reports[0]


def test_a_missing_demucs_fails_the_run_before_anything_is_read(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "find_spec", {}.get)
    error = run(tmp_path / "no archives", tmp_path / "tokens")
    assert isinstance(error, ConfigError) and "uv sync --extra vocals" in error.next_step
    assert not hub.requests and not (tmp_path / "tokens").exists()
    state = finetune(archives=str(tmp_path), model="debug", device="cpu", remove_vocals=True, return_state=True)
    assert isinstance(state.result(raise_on_failure=False), ConfigError)


def test_a_failed_download_ends_the_run_before_anything_is_read(
    hub: StandInHub, demucs_weights: Path, tmp_path: Path
) -> None:
    hub.faults.append(Fault(status=503, times=99))
    error = run(tmp_path / "no archives", tmp_path / "tokens")
    assert isinstance(error, ModelError) and error.found.startswith(
        "the weights for --remove-vocals can't be downloaded"
    )
    assert "503" in error.found and len(hub.requests) == 6


def test_results_with_vocals_keep_the_keys_of_earlier_versions(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicgen_core.tokenizing.shard_fingerprint", lambda *_, separator: f"of {separator!r}")
    given = {
        "archive": str(archives / "batch_1.zip"),
        "tokens": "tokens",
        "model": "debug",
        "settings": TokenizeSettings(),
        "metadata": None,
        "limit": None,
    }
    before = (
        '{"name_encoding":"auto","max_clip_gib":2.0,"max_ratio":200.0,"caption":null,"caption_prefix":null,'
        '"caption_template":null}'
    )
    parts = json.dumps(["of ''", "", before, "tokens", "batch_1"])
    assert _cache_key(None, given) == f"tokenize-{hashlib.sha256(parts.encode()).hexdigest()}"  # type: ignore[arg-type]

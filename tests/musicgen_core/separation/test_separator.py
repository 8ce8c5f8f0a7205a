"""Finding and loading the weights, compared with demucs's own loader."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from musicgen_core.errors import ConfigError, ModelError
from musicgen_core.separation import weights
from musicgen_core.separation.separator import VOCALS, Separator
from musicgen_core.separation.weights import BAG_FILE, REPO, WEIGHTS_FILE, find_separator, separator_identity
from tests.stand_in_hub import Fault, StandInHub
from tests.toy_demucs import TOY, make_demucs


@pytest.fixture
def copy(demucs_weights: Path, tmp_path: Path) -> Path:
    """Return a copy of the weights that a test may change."""
    for path in demucs_weights.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def rewrite(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    with safe_open(str(folder / WEIGHTS_FILE), framework="pt") as file:
        described = file.metadata()
    state = load_file(folder / WEIGHTS_FILE)
    change(described, state)
    save_file(state, folder / WEIGHTS_FILE, described)


def test_weights_are_fetched_once_and_load_as_with_demucs_itself(hub: StandInHub, demucs_weights: Path) -> None:
    from demucs.hf import get_hf_model

    hub.add(REPO, demucs_weights)
    directory = find_separator("--remove-vocals")
    assert sorted(hub.fetched()) == [WEIGHTS_FILE, BAG_FILE]
    requests = len(hub.requests)
    assert find_separator("--remove-vocals") == directory and len(hub.requests) == requests

    (theirs,), ours = get_hf_model("htdemucs").models, Separator(directory)
    assert (ours.rate, ours.segment_samples) == (theirs.samplerate, int(theirs.segment * theirs.samplerate))
    expected, found = theirs.state_dict(), ours._model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not ours._model.training
    wav = torch.randn(2, 2, ours.segment_samples)
    with torch.no_grad():
        sources = theirs.eval()(wav)
    torch.testing.assert_close(ours.without(wav, [VOCALS])[0], sources[:, :3].sum(1), rtol=0, atol=1e-5)


def test_the_names_are_those_that_demucs_has() -> None:
    hf = pytest.importorskip("demucs.hf")
    pretrained = pytest.importorskip("demucs.pretrained")
    assert f"{hf.DEFAULT_NAMESPACE}/{hf.hf_repo_name(pretrained.DEFAULT_MODEL)}" == REPO
    assert pretrained.DEFAULT_MODEL == weights.NAME
    own = (pretrained.REMOTE_ROOT / BAG_FILE).read_text()
    assert f"'{weights.SIGNATURE}'" in own


def test_weights_of_any_precision_are_computed_in_fp32(copy: Path, demucs_weights: Path) -> None:
    rewrite(copy, lambda _, state: state.update({name: value.float() for name, value in state.items()}))
    assert {value.dtype for value in load_file(demucs_weights / WEIGHTS_FILE).values()} == {torch.float16}
    full, half = Separator(copy), Separator(demucs_weights)
    wav = torch.randn(1, 2, full.segment_samples)
    found = half.without(wav, [VOCALS])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, full.without(wav, [VOCALS]), rtol=0, atol=0)


def test_the_identity_is_of_the_files_contents(copy: Path, demucs_weights: Path) -> None:
    assert separator_identity(copy) == separator_identity(demucs_weights) == Separator(copy).identity
    assert separator_identity(copy).startswith("htdemucs@sha256:")
    (copy / BAG_FILE).write_text("models: ['955717e8']\nsegment: 0.4\n")
    changed = separator_identity(copy)
    assert changed != separator_identity(demucs_weights) and Separator(copy).segment_samples == 17_640
    make_demucs(copy, seed=1)
    assert separator_identity(copy) not in (changed, separator_identity(demucs_weights))


@pytest.mark.parametrize(("version", "option"), [("none", "--remove-vocals"), ("4.0", "--separate-melody")])
def test_without_demucs_the_command_that_installs_it_is_named(
    version: str, option: str, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {} if version == "none" else {"demucs": ModuleSpec("demucs", None)}
    monkeypatch.setattr(weights, "find_spec", known.get)
    with pytest.raises(ConfigError, match=rf"{option} requires Demucs 4\.1 or newer, which .*uv sync --extra vocals"):
        find_separator(option)
    assert not hub.requests


def test_weights_that_cant_be_fetched_are_a_clear_error(
    hub: StandInHub, demucs_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.append(Fault(status=503, times=99))
    with pytest.raises(ModelError, match=rf"weights for --remove-vocals can't be downloaded: .*{REPO}.*503") as raised:
        find_separator("--remove-vocals")
    assert "copy models--adefossez--HTDemucs from the cache" in raised.value.next_step
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"not complete in the cache .*HF_HUB_OFFLINE") as raised:
        find_separator("--remove-vocals")
    assert "copy models--adefossez--HTDemucs from the cache" in raised.value.next_step


def foreign_class(described: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    described["klass"] = "foreign.code"


def not_a_number(_: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    next(iter(state.values())).view(-1)[0] = torch.nan


def missing(_: dict[str, Any], state: dict[str, torch.Tensor]) -> None:
    state.popitem()


def quantized(described: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    described["structure"] = json.dumps({"_class": "foreign.code"})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (foreign_class, "not of the class demucs.htdemucs.HTDemucs"),
        (quantized, "not of the class demucs.htdemucs.HTDemucs"),
        (not_a_number, "NaN or infinity in"),
        (missing, "Missing key"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_unusable_weights_are_refused_without_foreign_imports(
    change: Callable[..., None], reason: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    foreign = ModuleType("foreign")
    foreign.__getattr__ = imported.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "foreign", foreign)
    rewrite(copy, change)
    with pytest.raises(ModelError, match=reason) as raised:
        Separator(copy)
    assert str(copy / WEIGHTS_FILE) in raised.value.found and not imported


@pytest.mark.parametrize("spoilt", [b"", b"<html>", b"models: ['another']\n"])
def test_damaged_files_are_refused(spoilt: bytes, copy: Path) -> None:
    (copy / BAG_FILE).write_bytes(spoilt)
    with pytest.raises(ModelError, match="downloaded again"):
        Separator(copy)
    (copy / WEIGHTS_FILE).write_bytes(spoilt)
    with pytest.raises(ModelError, match="downloaded again"):
        Separator(copy)


@pytest.mark.parametrize("arguments", [{"sources": ["drums", "bass"]}, {"audio_channels": 1}])
def test_a_model_for_something_else_is_refused(arguments: dict[str, Any], demucs_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"sources: .*; channels: "):
        Separator(make_demucs(tmp_path, {**TOY, **arguments}))

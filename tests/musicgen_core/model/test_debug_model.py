"""The debug model: made once, with the same bits on every machine."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from musicgen_core.model.audiocraft_format import read_checkpoint
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.model.weights import BaseModel, find_model
from tests.musicgen_core.model.conftest import assert_same_state


def tensors_of(directory: Path) -> dict[str, dict[str, Tensor]]:
    from safetensors.torch import load_file

    lm, codec = (read_checkpoint(directory / f)["best_state"] for f in ("state_dict.bin", "compression_state_dict.bin"))
    return {"lm": lm, "codec": codec, "text_encoder": load_file(directory / "text_encoder" / "model.safetensors")}


def sha256_of_tensors(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_the_debug_model_does_not_depend_on_torchs_random_numbers(debug_model: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    made, expected = tensors_of(debug_model_directory(tmp_path)), tensors_of(debug_model.directory)
    for part in ("lm", "codec", "text_encoder"):
        assert_same_state(made[part], expected[part])


def test_the_debug_model_is_made_once(tmp_path: Path) -> None:
    directory = debug_model_directory(tmp_path)
    (directory / "mark").touch()
    assert (debug_model_directory(tmp_path) / "mark").exists()
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize(
    ("part", "sha256"),
    [
        ("lm", "3e86f8e2342319d27d12989596a18971ad0391ea41e5e39558a61c0efedb28ba"),
        ("codec", "222b4c510add1cc1820387cff69551d8139e9e4833ae193adfed133d48297b5a"),
        ("text_encoder", "5463db81b02b699394719b3634a4d7510f891b055c647d0a22f8f3e65faf58f4"),
    ],
)
def test_the_debug_models_bits_are_these(debug_model: BaseModel, part: str, sha256: str) -> None:
    """Adapters and shards record these weights. If they must change, raise `local_files.DEBUG_VERSION` as well."""
    assert sha256_of_tensors(tensors_of(debug_model.directory)[part]) == sha256


def test_the_debug_model_is_found_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = find_model("debug")
    assert tmp_path in model.lm_path.parents
    assert model.lm_path.is_file() and model.codec_path.is_file() and Path(model.text_encoder).is_dir()

"""Renderings that are refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.errors import AdapterError, ConfigError, DeviceError, MusicgenError
from musicgen_core.generation.render import render
from musicgen_core.model.adapters import Adapter, save_adapter


@pytest.mark.parametrize("what", ["weight", "cache"])
def test_unsupported_8_bits_are_refused_before_anything_is_written(request_for: Any, tmp_path: Path, what: str) -> None:
    with pytest.raises(DeviceError, match=f"8-bit {what}s"):
        render(request_for(**{f"{what}_bits": 8}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "found", "next_step"),
    [({"prompts": ()}, "no prompts", "--prompt"), ({"compare": True}, "--compare needs an adapter", "--adapter")],
)
def test_a_request_that_makes_no_sense_is_refused(
    request_for: Any, given: dict[str, Any], found: str, next_step: str
) -> None:
    with pytest.raises(ConfigError, match=found) as refused:
        render(request_for(**given))
    assert next_step in refused.value.next_step


def test_an_adapter_of_another_model_is_refused(request_for: Any, adapter: Path, tmp_path: Path) -> None:
    values = torch.load(adapter / "lora_weights" / "best_lora.pt", weights_only=True)
    other = Adapter(**{**values, "base_model": "facebook/musicgen-small@sha256:0000000000000000"})
    save_adapter(other, storage.as_path(tmp_path / "other_lora.pt"))
    with pytest.raises(AdapterError, match="was trained on facebook/musicgen-small"):
        render(request_for(adapter=str(tmp_path / "other_lora.pt")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["adapter", "continue_from"])
def test_inputs_are_checked_before_a_model_is_looked_for(request_for: Any, tmp_path: Path, given: str) -> None:
    gone = str(tmp_path / "gone_lora.pt")
    with pytest.raises(MusicgenError, match="gone_lora"):
        render(request_for(model=str(tmp_path / "no-model"), **{given: gone}))

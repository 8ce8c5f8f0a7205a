"""Adapter files: their content, settings of older versions, peft, files that are missing or damaged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.errors import AdapterError
from musicgen_core.model.adapters import Adapter, AdapterConfig, find_adapter, load_adapter, save_adapter
from musicgen_core.model.decoder import Condition
from musicgen_core.model.lora import load_merged
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.model.adapters import SETTINGS, VARIANTS


def test_an_adapter_comes_back_as_it_was_saved(adapter: Adapter, tmp_path: Path) -> None:
    path = storage.as_path(tmp_path / "best_lora.pt")
    save_adapter(adapter, path)
    loaded = load_adapter(path)
    assert loaded.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(loaded.lora[name], adapter.lora[name]) for name in adapter.lora)
    assert dataclasses.replace(loaded, lora={}) == dataclasses.replace(adapter, lora={})


def test_an_adapter_file_is_plain_values_under_the_contracts_names(adapter: Adapter, tmp_path: Path) -> None:
    save_adapter(adapter, storage.as_path(tmp_path / "a.pt"))
    values = torch.load(tmp_path / "a.pt", weights_only=True)
    assert list(values) == ["lora", "config", "epoch", "global_step", "loss", "base_model"]
    assert values["config"] == {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_settings_come_back_from_a_file(variant: str) -> None:
    assert AdapterConfig.from_plain(json.loads(json.dumps(VARIANTS[variant].plain()))) == VARIANTS[variant]


def test_an_adapter_of_before_rslora_and_dora_has_neither() -> None:
    plain = SETTINGS.plain()
    del plain["use_rslora"], plain["use_dora"]
    assert AdapterConfig.from_plain(plain) == SETTINGS


def test_peft_itself_takes_the_saved_adapter(
    debug_model: BaseModel, any_adapter: Adapter, sequence: Tensor, text: Condition
) -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    config = LoraConfig(**{name: value for name, value in any_adapter.config.items() if name != "peft_type"})
    model: Any = get_peft_model(load_lm(debug_model), config)
    result = set_peft_model_state_dict(model, dict(any_adapter.lora))
    assert not result.unexpected_keys
    with torch.inference_mode():
        expected = load_merged(debug_model, any_adapter, "cpu", torch.float32)(sequence, text)
        torch.testing.assert_close(model.eval()(sequence, text), expected, atol=1e-4, rtol=0)


def test_a_run_directory_stands_for_its_best(adapter: Adapter, tmp_path: Path) -> None:
    best = tmp_path / "lora_weights" / "best_lora.pt"
    save_adapter(adapter, storage.as_path(best))
    assert find_adapter(tmp_path) == find_adapter(best) == storage.as_path(best)


@pytest.mark.parametrize("given", ["run", "some_lora.pt"])
def test_a_missing_adapter_is_named(tmp_path: Path, given: str) -> None:
    with pytest.raises(AdapterError, match=str(tmp_path / given)) as missing:
        find_adapter(tmp_path / given)
    assert "run directory" in missing.value.next_step


@pytest.mark.parametrize("damage", ["truncated", "empty", "a web page", "another file of tensors"])
def test_a_damaged_adapter_is_named(adapter: Adapter, tmp_path: Path, damage: str) -> None:
    path = storage.as_path(tmp_path / "best_lora.pt")
    save_adapter(adapter, path)
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1000])
        case "empty":
            path.write_bytes(b"")
        case "a web page":
            path.write_text("<html>Not found</html>")
        case "another file of tensors":
            torch.save({"weights": torch.zeros(1)}, tmp_path / "best_lora.pt")
    with pytest.raises(AdapterError, match=str(path)):
        load_adapter(path)

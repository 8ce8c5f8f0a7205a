"""`export --format peft`, against the real peft on the real transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import Adapter, find_adapter, load_adapter
from tests.fixture_types import Save
from tests.musicgen_core.exporting.conftest import LogitsOf, near


def test_peft_loads_exported_adapters_with_our_logits_and_codes(
    any_adapter: Adapter, saved: Save, hf_model: Any, hf: Any, our_logits: LogitsOf, our_codes: LogitsOf, tmp_path: Path
) -> None:
    from peft import PeftModel

    export(saved(any_adapter), tmp_path / "out", "peft")
    untouched = hf.logits(hf_model)
    model = PeftModel.from_pretrained(hf_model, str(tmp_path / "out")).eval()
    found, expected = hf.logits(model), our_logits(any_adapter)
    assert near(found, expected) and not near(found, untouched)
    codes = hf.codes(model)
    assert torch.equal(codes, our_codes(any_adapter)) and not torch.equal(codes, our_codes(None))


def test_an_exported_adapter_comes_back_as_it_was(any_adapter: Adapter, saved: Save, tmp_path: Path) -> None:
    export(saved(any_adapter), tmp_path / "out", "peft")
    found = load_adapter(find_adapter(tmp_path / "out"))
    assert found.lora.keys() == any_adapter.lora.keys()
    assert all(torch.equal(found.lora[name], any_adapter.lora[name]) for name in found.lora)
    assert sorted(found.config.pop("target_modules")) == sorted(any_adapter.config["target_modules"])
    config = {name: value for name, value in any_adapter.config.items() if name != "target_modules"}
    assert dataclasses.replace(found, lora={}) == dataclasses.replace(any_adapter, lora={}, config=config)


@pytest.mark.parametrize(
    ("base_model", "named"),
    [
        ("facebook/musicgen-large@sha256:0123456789abcdef", "facebook/musicgen-large"),
        ("local@sha256:0123456789abcdef", None),
    ],
)
def test_the_base_model_is_named_by_its_id_on_the_hub(
    adapter: Adapter, saved: Save, tmp_path: Path, base_model: str, named: str | None
) -> None:
    export(saved(dataclasses.replace(adapter, base_model=base_model)), tmp_path / "out", "peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == named
    assert config["auto_mapping"]["base_model_class"] == "MusicgenForConditionalGeneration"

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest

from musicgen_core import storage
from musicgen_core.errors import AdapterError
from musicgen_core.model.adapters import Adapter, AdapterConfig, base_model_of, choose_model
from musicgen_core.model.weights import BaseModel

DEFAULT = "facebook/musicgen-large"


def of(base_model: str) -> Adapter:
    return Adapter({}, AdapterConfig(4, 16).plain(), 1, 1, 1.0, base_model)


def choose(adapter: Adapter, weights: Path, given: str | None = None) -> str:
    return choose_model(given, DEFAULT, adapter, storage.as_path(weights))


@pytest.mark.parametrize(
    ("base_model", "name"),
    [
        ("demo@sha256:0123456789abcdef", "demo"),
        ("facebook/musicgen-small@sha256:0123456789abcdef", "facebook/musicgen-small"),
        ("facebook/musicgen-small", "facebook/musicgen-small"),  # as peft writes it
    ],
)
def test_an_adapter_names_its_base_model(base_model: str, name: str, tmp_path: Path) -> None:
    assert choose(of(base_model), tmp_path / "best_lora.pt") == name


def test_the_model_that_is_given_counts_before_the_adapters(tmp_path: Path) -> None:
    assert choose(of("demo@sha256:0123456789abcdef"), tmp_path / "best_lora.pt", "debug") == "debug"


def test_without_an_adapter_the_default_is_used() -> None:
    assert choose_model(None, DEFAULT, None, None) == DEFAULT


def test_an_adapter_without_base_model_gets_the_default_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose(of(""), tmp_path / "adapter_model.safetensors") == DEFAULT
    assert "doesn't name its base model: facebook/musicgen-large is used" in caplog.text


def test_the_run_directory_says_where_a_local_model_is(debug_model: BaseModel, tmp_path: Path) -> None:
    model = tmp_path / "my_model"
    shutil.copytree(debug_model.directory, model)
    weights = tmp_path / "run" / "lora_weights" / "best_lora.pt"
    weights.parent.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model_dir": str(model)}))
    adapter = of(dataclasses.replace(debug_model, name=str(model)).identity)
    assert choose(adapter, weights) == str(model)
    shutil.rmtree(model)
    with pytest.raises(AdapterError, match=r"is not at .*my_model any more") as refused:
        choose(adapter, weights)
    assert "Give --model" in refused.value.next_step


def test_a_local_directory_that_peft_names_is_the_base_model(debug_model: BaseModel, tmp_path: Path) -> None:
    directory = str(debug_model.directory)
    assert base_model_of(of(directory), storage.as_path(tmp_path / "adapter_model.safetensors")) == directory

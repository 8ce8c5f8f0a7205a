from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.errors import AdapterError, ModelError
from musicgen_core.model import peft_directory
from musicgen_core.model.adapters import Adapter, AdapterConfig, load_adapter, save_adapter
from musicgen_core.model.audiocraft_format import read_checkpoint
from musicgen_core.model.lora import check_merged
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.tensor_files import names_of_non_finite

NAME = "base_model.model.model.decoder.layers.0.fc1.lora_A.weight"


@pytest.fixture
def adapter() -> Adapter:
    lora = {NAME: torch.ones(2, 8), NAME.replace("lora_A", "lora_B"): torch.ones(4, 2)}
    return Adapter(lora, AdapterConfig(2, 16, targets=("fc1",)).plain(), 3, 42, 1.5, "debug@sha256:0123456789abcdef")


def save_as_pt(adapter: Adapter, folder: Path) -> Path:
    save_adapter(adapter, storage.as_path(folder / "x_lora.pt"))
    return folder / "x_lora.pt"


def save_as_peft(adapter: Adapter, folder: Path) -> Path:
    finite = {**adapter.config, "lora_alpha": 16, "r": 2}  # peft itself refuses some of what is tried here
    peft_directory.write({**vars(adapter), "config": finite}, None, folder)
    config = json.loads((folder / peft_directory.CONFIG_FILE).read_text())
    changed = {name: adapter.config[name] for name in ("lora_alpha", "r")}
    (folder / peft_directory.CONFIG_FILE).write_text(json.dumps(config | changed))
    return folder / peft_directory.WEIGHTS_FILE


@pytest.mark.parametrize("save", [save_as_pt, save_as_peft])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(
    adapter: Adapter, tmp_path: Path, save: Callable[[Adapter, Path], Path], value: float
) -> None:
    weight = adapter.lora[NAME].clone()
    weight[1, 3] = value
    broken = [
        (dataclasses.replace(adapter, lora={**adapter.lora, NAME: weight}), f"1 of its 2 tensors .*{NAME}"),
        (dataclasses.replace(adapter, config={**adapter.config, "lora_alpha": value}), "lora_alpha is -?(nan|inf)"),
    ]
    for number, (one, message) in enumerate(broken):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = save(one, folder)
        with pytest.raises(AdapterError, match=message) as refused:
            load_adapter(storage.as_path(path))
        assert str(path) in refused.value.found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora": [1, 2]}, "lora is a list"),
        ({"lora": {NAME: 1.0}}, "is a float, not a tensor"),
        ({"lora": {NAME: torch.ones(2, 8, dtype=torch.int32)}}, "int32, not a tensor of floating-point"),
        ({"config": None}, "config is a NoneType"),
        (
            {"config": {"r": 10**9, "lora_alpha": 1, "lora_dropout": 0}},
            "r is 1000000000, but the shape",
        ),
        ({"config": {"r": 2, "lora_alpha": "nan", "lora_dropout": 0}}, "lora_alpha is 'nan'"),
        ({"epoch": "3"}, "epoch is a str"),
    ],
)
def test_values_of_another_kind_are_refused_by_name(
    adapter: Adapter, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    torch.save({**vars(adapter), **given}, tmp_path / "x_lora.pt")
    with pytest.raises(AdapterError, match=message):
        load_adapter(storage.as_path(tmp_path / "x_lora.pt"))


def test_a_changed_adapter_config_is_reported(
    adapter: Adapter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = storage.as_path(save_as_peft(adapter, tmp_path))
    assert load_adapter(weights).config["lora_alpha"] == 16 and not caplog.records
    config = json.loads((tmp_path / peft_directory.CONFIG_FILE).read_text())
    (tmp_path / peft_directory.CONFIG_FILE).write_text(json.dumps(config | {"lora_alpha": 24}))
    assert load_adapter(weights).config["lora_alpha"] == 24
    assert "lora_alpha was 16 and is 24" in caplog.text


def test_a_base_model_with_nan_is_refused_by_name(debug_model: BaseModel, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(debug_model.lm_path)
    name = "transformer.layers.1.linear1.weight"
    weight = checkpoint["best_state"][name].clone()
    weight[0, 0] = math.nan
    torch.save({**checkpoint, "best_state": {**checkpoint["best_state"], name: weight}}, tmp_path / "state_dict.bin")
    with pytest.raises(ModelError, match=r"1 of the .*state_dict\.bin hold NaN .*layers\.1\.fc1\.weight"):
        load_lm(tmp_path / "state_dict.bin")


def test_a_merge_that_overflows_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"1 of the model's 2 tensors .* such as b"):
        check_merged({"a": torch.ones(2), "b": torch.tensor([1.0, 2.0]) * 1e39}, "float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype, value: float) -> None:
    large = torch.finfo(dtype).max
    tensors = {"max": torch.full((3, 5), large, dtype=dtype), "empty": torch.empty(0), "int": torch.ones(3).int()}
    assert names_of_non_finite(tensors) == []
    for place in range(15):
        broken = torch.full((15,), -large, dtype=dtype)
        broken[place] = value
        assert names_of_non_finite({**tensors, "broken": broken.reshape(3, 5).T}) == ["broken"]

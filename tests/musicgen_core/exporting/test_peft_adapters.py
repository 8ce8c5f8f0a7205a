"""Adapters made by peft as `--adapter`: the same logits here as there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.model import peft_directory
from musicgen_core.model.adapters import AdapterConfig, find_adapter, load_adapter
from musicgen_core.model.lora import add_lora, set_adapter_state
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.exporting.conftest import LogitsOf, MadeByPeft, near, of, random_adapter


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 7},
        {"use_dora": True},
        {"pickled": True},
        {"target_modules": ["v_proj", "decoder.model.decoder.layers.1.fc2"]},
        {"target_modules": r".*decoder\.layers\.\d\.encoder_attn\.(q|v)_proj"},
        {"target_modules": ["fc1", "q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"target_modules": ["fc1"], "layers_to_transform": [0], "exclude_modules": ["layers.0.fc2"]},
        {"exclude_modules": ["encoder_attn.q_proj"]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
        {"rank_pattern": {"fc1": 2, "layers.0.self_attn.q_proj": 6}, "alpha_pattern": {"fc2": 3, "fc1": 5}},
        {"rank_pattern": {r"layers\.1\..*": 2}, "use_rslora": True},
        {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"k_proj": 3}, "use_rslora": True, "use_dora": True},
    ],
    ids=str,
)
def test_an_adapter_made_by_peft_gives_the_same_logits_here(
    made_by_peft: MadeByPeft, hf: Any, our_logits: LogitsOf, tmp_path: Path, settings: dict[str, Any]
) -> None:
    expected = hf.logits(made_by_peft(**settings))
    assert near(our_logits(of(tmp_path / "peft")), expected)
    assert not near(our_logits(None), expected)


def test_a_peft_adapter_of_the_lm_alone_gives_the_same_logits(
    made_by_peft: MadeByPeft, hf_model: Any, hf: Any, our_logits: LogitsOf, tmp_path: Path
) -> None:
    made_by_peft(on=hf_model.decoder)  # it changes hf_model's own layers
    assert near(our_logits(of(tmp_path / "peft")), hf.logits(hf_model))


def test_an_adapter_in_half_precision_is_used_as_peft_uses_it(
    made_by_peft: MadeByPeft, hf: Any, our_logits: LogitsOf, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = made_by_peft()
    weights = tmp_path / "peft" / "adapter_model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt", "epoch": "of another program"})
    model.load_adapter(str(tmp_path / "peft"), "rounded", autocast_adapter_dtype=True)
    model.set_adapter("rounded")
    adapter = of(tmp_path / "peft")
    assert near(our_logits(adapter), hf.logits(model.eval()))
    assert {tensor.dtype for tensor in adapter.lora.values()} == {torch.float32} and adapter.epoch == 0


def test_a_pattern_for_every_block_is_the_same_settings_as_names(made_by_peft: MadeByPeft, tmp_path: Path) -> None:
    made_by_peft(target_modules=r".*\.(self_attn|encoder_attn)\.(q|k|v|out)_proj|.*\.fc.")
    of(tmp_path / "peft").check_scale(AdapterConfig(4, 16), "given")


@pytest.mark.parametrize(
    "settings",
    [
        AdapterConfig(4, 16, layers=(1,)),
        AdapterConfig(4, 16, ranks={0: 2}),
        AdapterConfig(3, 8, layers=(0,), ranks={0: 5}),
    ],
    ids=["layers", "ranks", "both"],
)
def test_layers_and_ranks_survive_peft_format(debug_model: BaseModel, settings: AdapterConfig, tmp_path: Path) -> None:
    adapter = random_adapter(debug_model, settings)
    (tmp_path / "peft").mkdir()
    peft_directory.write(vars(adapter), None, tmp_path / "peft")
    found = of(tmp_path / "peft")
    found.check_scale(settings, "given")
    assert found.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(found.lora[name], adapter.lora[name]) for name in adapter.lora)


def test_training_starts_from_an_adapter_made_by_peft(
    made_by_peft: MadeByPeft, debug_model: BaseModel, hf: Any, our_logits: LogitsOf, tmp_path: Path
) -> None:
    made_by_peft()
    adapter = of(tmp_path / "peft")
    adapter.check_base(debug_model, "given")
    adapter.check_scale(AdapterConfig(4, 16, 0.1), "given")
    trained = add_lora(load_lm(debug_model), AdapterConfig(4, 16, 0.1))
    set_adapter_state(trained, adapter.lora, "given")  # raises where a name or a shape differs
    changed = [name for name, parameter in trained.named_parameters() if "lora_B" in name and parameter.any()]
    assert len(changed) == 20


def test_it_is_found_by_its_files_too_and_in_an_object_store(
    made_by_peft: MadeByPeft, bucket: Any, tmp_path: Path
) -> None:
    made_by_peft()
    storage.upload_tree(tmp_path / "peft", bucket / "peft")
    expected = of(tmp_path / "peft")
    for place in (tmp_path / "peft" / "adapter_config.json", bucket / "peft"):
        found = load_adapter(find_adapter(str(place)))
        assert found.config == expected.config
        assert all(torch.equal(found.lora[name], expected.lora[name]) for name in expected.lora)

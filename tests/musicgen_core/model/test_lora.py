"""LoRA layers: what they adapt, what learns, what a fresh and a merged adapter compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from musicgen_core.errors import ConfigError
from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.decoder import Condition
from musicgen_core.model.lora import adapter_state, add_lora, load_merged, set_adapter_state
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.model.adapters import SETTINGS, VARIANTS

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
TEN_LINEARS = [f"{attention}.{p}" for attention in ("self_attn", "encoder_attn") for p in PROJECTIONS] + ["fc1", "fc2"]


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        (AdapterConfig(4, 16, layers=(0, 2, 3)), r"layers has 2-3, but the model's layers are 0 to 1"),
        (AdapterConfig(4, 16, ranks={1: 2, 48: 8}), r"ranks has 48, but the model's layers are 0 to 1"),
    ],
    ids=["layers", "ranks"],
)
def test_layers_that_the_model_lacks_are_refused(debug_model: BaseModel, settings: AdapterConfig, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        add_lora(load_lm(debug_model), settings)


def test_only_the_chosen_layers_get_an_adapter_of_their_rank(debug_model: BaseModel) -> None:
    settings = AdapterConfig(4, 16, layers=(1,), ranks={1: 6})
    model = add_lora(load_lm(debug_model), settings)
    state = adapter_state(model)
    assert {name.split(".")[5] for name in state} == {"1"} and len(state) == 20
    assert {tensor.shape[0] for name, tensor in state.items() if "lora_A" in name} == {6}
    layer = model.base_model.model.model.decoder.layers[1].fc1
    assert layer.scaling["default"] == 16 / 6


def test_the_ten_linears_of_each_block_and_nothing_else_are_adapted(debug_model: BaseModel) -> None:
    lm = load_lm(debug_model)
    expected = {
        f"base_model.model.model.decoder.layers.{layer}.{linear}.lora_{side}.weight"
        for layer in range(lm.config.layers)
        for linear in TEN_LINEARS
        for side in "AB"
    }
    assert adapter_state(add_lora(lm, SETTINGS)).keys() == expected


def test_targets_choose_layers_by_the_ends_of_their_names(debug_model: BaseModel) -> None:
    lm = load_lm(debug_model)
    chosen = {
        f"{i}.{one}" for i in (0, 1) for one in ("self_attn.q_proj", "encoder_attn.q_proj", "encoder_attn.v_proj")
    }
    expected = {
        f"base_model.model.model.decoder.layers.{linear}.lora_{side}.weight"
        for linear in chosen | {"0.fc1"}
        for side in "AB"
    }
    assert adapter_state(add_lora(lm, VARIANTS["some layers"])).keys() == expected


@pytest.mark.parametrize("wrong", ["q_prj", "proj", "self_attn", "lm_heads.0", "enc_to_dec_proj", "layers.2.fc1", ""])
def test_a_target_that_matches_no_layer_is_refused_with_the_layers(debug_model: BaseModel, wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"lora_targets {wrong}: no linear") as refused:
        add_lora(load_lm(debug_model), AdapterConfig(4, 16, targets=("v_proj", wrong)))
    assert all(name in refused.value.next_step for name in TEN_LINEARS)


def test_an_adapter_on_no_layers_is_refused(debug_model: BaseModel) -> None:
    with pytest.raises(ConfigError, match="lora_targets is empty"):
        add_lora(load_lm(debug_model), AdapterConfig(4, 16, targets=()))


def test_rslora_divides_by_the_root_of_the_rank(debug_model: BaseModel) -> None:
    layers = [add_lora(load_lm(debug_model), VARIANTS[name]).base_model.model.model for name in ("LoRA", "rsLoRA")]
    assert [layer.decoder.layers[1].fc2.scaling["default"] for layer in layers] == [4, 8]


def test_only_the_adapter_learns(debug_model: BaseModel, sequence: Tensor, text: Condition) -> None:
    model = add_lora(load_lm(debug_model), SETTINGS)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    for _ in range(2):  # lora_A gets no gradient before lora_B has moved
        optimizer.zero_grad()
        model(sequence, text).square().mean().backward()
        optimizer.step()
    with_gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    adapters = {name for name in before if ".lora_A." in name or ".lora_B." in name}
    assert with_gradients == changed == adapters


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_fresh_adapter_changes_nothing(
    debug_model: BaseModel, sequence: Tensor, text: Condition, variant: str
) -> None:
    lm = load_lm(debug_model)
    expected = lm(sequence, text)
    assert torch.equal(add_lora(lm, VARIANTS[variant]).eval()(sequence, text), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fresh_dora_changes_no_weight_of_half_precision(debug_model: BaseModel, dtype: torch.dtype) -> None:
    merged = add_lora(load_lm(debug_model, dtype=dtype), VARIANTS["DoRA"]).merge_and_unload().state_dict()
    base = load_lm(debug_model, dtype=dtype).state_dict()
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_a_fresh_adapter_depends_on_its_seed_alone(debug_model: BaseModel) -> None:
    states = []
    for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(disturbance)
        states.append(adapter_state(add_lora(load_lm(debug_model), SETTINGS, seed)))
    name = next(name for name in states[0] if "lora_A" in name)
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@torch.inference_mode()
def test_merged_equals_unmerged(
    debug_model: BaseModel,
    any_adapter: Adapter,
    sequence: Tensor,
    text: Condition,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    base = load_lm(debug_model, dtype=dtype)
    untouched = base(sequence, text)
    model = add_lora(base, AdapterConfig.from_plain(any_adapter.config))
    set_adapter_state(model, any_adapter.lora, "made here")
    unmerged = model.eval()(sequence, text)
    merged = load_merged(debug_model, any_adapter, "cpu", dtype)(sequence, text)
    assert (unmerged - untouched).abs().max() > 0.1
    torch.testing.assert_close(merged, unmerged, atol=tolerance * unmerged.abs().max().item(), rtol=0)

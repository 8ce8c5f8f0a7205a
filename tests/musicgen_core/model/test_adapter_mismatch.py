"""Adapters of another rank, model, scale or variant are refused with the difference."""

from __future__ import annotations

import dataclasses

import pytest

from musicgen_core.errors import AdapterError
from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.decoder import DecoderConfig, MusicgenLM
from musicgen_core.model.lora import add_lora, set_adapter_state
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.model.adapters import SETTINGS, SOME, VARIANTS


def test_an_adapter_of_another_rank_is_refused_with_the_difference(debug_model: BaseModel, adapter: Adapter) -> None:
    model = add_lora(load_lm(debug_model), AdapterConfig(8, 16))
    with pytest.raises(AdapterError) as refused:
        set_adapter_state(model, adapter.lora, "old_lora.pt")
    assert "old_lora.pt" in refused.value.found and "40 tensors differ" in refused.value.found
    assert "has [4, 64], the model needs [8, 64]" in refused.value.found


def test_an_adapter_of_a_model_of_fewer_layers_is_refused(adapter: Adapter) -> None:
    deeper = MusicgenLM(DecoderConfig(dim=64, layers=3, heads=4, ffn_dim=256, text_dim=512))
    with pytest.raises(AdapterError, match=r"20 tensors differ.*layers\.2\..*the adapter has none"):
        set_adapter_state(add_lora(deeper, SETTINGS), adapter.lora, "given")


def test_an_adapter_of_other_weights_is_refused_by_both_names(debug_model: BaseModel, adapter: Adapter) -> None:
    other = dataclasses.replace(adapter, base_model="facebook/musicgen-small@sha256:0000000000000000")
    with pytest.raises(AdapterError) as refused:
        other.check_base(debug_model, "x_lora.pt")
    assert "facebook/musicgen-small@" in refused.value.found and debug_model.identity in refused.value.found
    assert refused.value.next_step == "Give --model facebook/musicgen-small"


def test_the_same_weights_under_another_name_are_the_same_model(debug_model: BaseModel, adapter: Adapter) -> None:
    elsewhere = BaseModel(str(debug_model.directory), debug_model.directory)
    assert elsewhere.identity != debug_model.identity
    adapter.check_base(elsewhere, "given")


@pytest.mark.parametrize("other", [AdapterConfig(4, 8), AdapterConfig(8, 16)])
def test_an_adapter_of_another_scale_is_refused_with_both(adapter: Adapter, other: AdapterConfig) -> None:
    adapter.check_scale(AdapterConfig(4, 16, dropout=0.5), "given")
    with pytest.raises(AdapterError, match=f"lora_r 4 and lora_alpha 16.*say {other.r} and {other.alpha}") as refused:
        adapter.check_scale(other, "given")
    assert refused.value.next_step == "Give --lora-r 4 --lora-alpha 16"


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "LoRA"])
def test_an_adapter_of_another_shape_is_refused_with_the_options(adapter: Adapter, variant: str) -> None:
    with pytest.raises(AdapterError):
        adapter.check_scale(VARIANTS[variant], "given")
    other = dataclasses.replace(adapter, config=VARIANTS[variant].plain())
    with pytest.raises(AdapterError) as refused:
        other.check_scale(SETTINGS, "given")
    assert (
        refused.value.next_step
        == "Give --lora-r 4 --lora-alpha 16"
        + {
            "rsLoRA": " --lora-rslora",
            "DoRA": " --lora-dora",
            "some layers": "".join(f" --lora-targets {one}" for one in sorted(SOME)),
            "one block": " --layers 1",
            "ranks": " --lora-rslora --ranks 0=2,1=6",
            "all of it": "".join(f" --lora-targets {one}" for one in sorted(SOME)) + " --lora-rslora --lora-dora",
        }[variant]
    )


def test_an_adapter_without_dora_is_continued_without(adapter: Adapter) -> None:
    with pytest.raises(AdapterError, match=r"lora_dora False.*say 4 and 16 and True") as refused:
        adapter.check_scale(VARIANTS["DoRA"], "given")
    assert refused.value.next_step == "Give --lora-r 4 --lora-alpha 16, without --lora-dora"

"""The weights of adapted models: the base's plus the sum of strength × change of each adapter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from musicgen_core.errors import AdapterError
from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.lora import AdaptedModel, add_lora, load_merged, merged_state, set_adapter_state
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.model.adapters import SETTINGS, VARIANTS, random_adapter
from tests.musicgen_core.model.conftest import assert_same_state

Weights = dict[str, Tensor]


@pytest.fixture(scope="module")
def adapters(debug_model: BaseModel) -> list[Adapter]:
    """Adapters that differ in rank, scale, layers and variant."""
    return [random_adapter(debug_model, VARIANTS[name]) for name in ("ranks", "one block", "all of it")]


def by_peft(model: BaseModel, adapter: Adapter, dtype: torch.dtype) -> Weights:
    adapted = add_lora(load_lm(model, dtype=dtype), AdapterConfig.from_plain(adapter.config))
    set_adapter_state(adapted, adapter.lora, "given")
    merged: Weights = adapted.merge_and_unload().state_dict()
    return merged


def mixed(
    model: BaseModel, adapters: Sequence[Adapter], strengths: Sequence[float], dtype: torch.dtype = torch.float32
) -> Weights:
    adapted = AdaptedModel(load_lm(model, dtype=dtype), model.lm_state, adapters)
    adapted.set_strengths(strengths)
    return adapted.lm.state_dict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_1_is_what_peft_merges_bit_for_bit(
    debug_model: BaseModel, any_adapter: Adapter, dtype: torch.dtype
) -> None:
    expected = by_peft(debug_model, any_adapter, dtype)
    assert_same_state(load_merged(debug_model, any_adapter, "cpu", dtype).state_dict(), expected)


def test_sums_equal_the_sum_of_merged_changes(debug_model: BaseModel, adapters: list[Adapter]) -> None:
    base, strengths = load_lm(debug_model, dtype=torch.float64).state_dict(), (0.7, -0.4, 1.3)
    changed = [by_peft(debug_model, adapter, torch.float64) for adapter in adapters]
    found = mixed(debug_model, adapters, strengths, torch.float64)
    for name, weight in base.items():
        expected = weight + sum(
            strength * (merged[name] - weight) for strength, merged in zip(strengths, changed, strict=True)
        )
        torch.testing.assert_close(found[name], expected, atol=1e-13, rtol=1e-13)
    assert any(not torch.equal(found[name], weight) for name, weight in base.items())


def test_strengths_of_0_are_the_base_exactly_also_after_others(debug_model: BaseModel, adapters: list[Adapter]) -> None:
    base = load_lm(debug_model, dtype=torch.bfloat16).state_dict()
    adapted = AdaptedModel(load_lm(debug_model, dtype=torch.bfloat16), debug_model.lm_state, adapters)
    adapted.set_strengths([0, 0, 0])
    assert_same_state(adapted.lm.state_dict(), base)
    adapted.set_strengths([0.5, 2, -1])
    assert any(not torch.equal(weight, base[name]) for name, weight in adapted.lm.state_dict().items())
    adapted.set_strengths([0, 1, 0])
    assert_same_state(adapted.lm.state_dict(), by_peft(debug_model, adapters[1], torch.bfloat16))
    adapted.set_strengths([0, 0, 0])
    assert_same_state(adapted.lm.state_dict(), base)


def test_files_get_the_same_sum_as_music(debug_model: BaseModel, adapters: list[Adapter]) -> None:
    parts = list(zip(adapters, (0.7, -0.4, 1.3), strict=True))
    assert_same_state(merged_state(debug_model, parts), mixed(debug_model, adapters, [one for _, one in parts]))


def test_strengths_that_overflow_are_refused(debug_model: BaseModel) -> None:
    with pytest.raises(AdapterError, match="hold NaN or infinite values"):
        mixed(debug_model, [random_adapter(debug_model, SETTINGS)], [1e6], torch.float16)

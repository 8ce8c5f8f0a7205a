"""Exports of adapters with strengths: other libraries compute what this project does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.errors import AdapterError
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import Adapter, AdapterConfig, save_adapter
from musicgen_core.model.lora import AdaptedModel
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.exporting.conftest import PLAIN, PROMPT, VARIANTS, near, of, random_adapter
from tests.musicgen_core.exporting.test_audiocraft import loaded as loaded_by_audiocraft
from tests.musicgen_core.exporting.test_audiocraft import logits_of
from tests.musicgen_core.exporting.test_huggingface import loaded as loaded_by_transformers

STRENGTHS = (0.7, -0.4, 1.2)


@pytest.fixture(scope="module")
def parts(debug_model: BaseModel) -> list[Adapter]:
    """Adapters that differ in ranks, scales and layers."""
    found = [random_adapter(debug_model, VARIANTS[name]) for name in ("another scale", "ranks", "some layers")]
    return [
        dataclasses.replace(one, lora={name: (1 + k) * tensor for name, tensor in one.lora.items()})
        for k, one in enumerate(found)
    ]


@pytest.fixture(scope="module")
def mix(parts: list[Adapter], tmp_path_factory: pytest.TempPathFactory) -> list[WeightedAdapter]:
    folder = tmp_path_factory.mktemp("adapters")
    for number, adapter in enumerate(parts):
        save_adapter(adapter, storage.as_path(folder / f"take{number}" / "lora_weights" / "best_lora.pt"))
    return [WeightedAdapter(str(folder / f"take{k}"), strength) for k, strength in enumerate(STRENGTHS)]


@torch.inference_mode()
def logits_with(
    model: BaseModel, parts: Sequence[Adapter], strengths: Sequence[float], sequence: Tensor, text: TextEncoder
) -> Tensor:
    adapted = AdaptedModel(load_lm(model), model.lm_state, parts)
    adapted.set_strengths(strengths)
    return adapted.lm(sequence, text.encode([PROMPT]))[0]


@pytest.fixture(scope="module")
def expected(debug_model: BaseModel, parts: list[Adapter], sequence: Tensor, text_encoder: TextEncoder) -> Tensor:
    return logits_with(debug_model, parts, STRENGTHS, sequence, text_encoder)


def test_peft_loads_a_mix_as_one_adapter(
    mix: list[WeightedAdapter],
    expected: Tensor,
    hf_model: Any,
    hf: Any,
    debug_model: BaseModel,
    sequence: Tensor,
    text_encoder: TextEncoder,
    tmp_path: Path,
) -> None:
    from peft import PeftModel

    export(mix, tmp_path / "out", "peft")
    untouched = hf.logits(hf_model)
    found = hf.logits(PeftModel.from_pretrained(hf_model, str(tmp_path / "out")).eval())
    assert near(found, expected) and not near(found, untouched)
    exported = of(tmp_path / "out")
    assert exported.config["r"] == 3 + 6 + 4 and exported.global_step == 0
    assert near(logits_with(debug_model, [exported], [1], sequence, text_encoder), expected)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| take0/best_lora.pt | 0.7 | 3 | 30 |" in card
    assert str(tmp_path) not in card and "## Settings" not in card


def test_audiocraft_loads_a_mix_merged(
    mix: list[WeightedAdapter], expected: Tensor, sequence: Tensor, tmp_path: Path
) -> None:
    export(mix, tmp_path / "out", "audiocraft")
    with loaded_by_audiocraft(tmp_path / "out", tmp_path / "beside") as model:
        found, valid = logits_of(model, sequence)
    assert near(found[valid], torch.stack([expected[k, k : k + 12] for k in range(4)])[valid])


def test_transformers_loads_a_mix_merged(mix: list[WeightedAdapter], expected: Tensor, hf: Any, tmp_path: Path) -> None:
    export(mix, tmp_path / "out", "huggingface")
    assert near(hf.logits(loaded_by_transformers(tmp_path / "out")), expected)


def test_the_order_of_a_mix_changes_no_bit_of_its_weights(mix: list[WeightedAdapter], tmp_path: Path) -> None:
    for name, given in (("one", mix), ("other", mix[::-1])):
        export(given, tmp_path / name, "peft")
    one, other = (of(tmp_path / name).lora for name in ("one", "other"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_of_one_shape_keep_their_targets(debug_model: BaseModel, saved: Any, tmp_path: Path) -> None:
    source = str(saved(random_adapter(debug_model, PLAIN)))
    export([WeightedAdapter(source, 0.25), WeightedAdapter(source, 0.5)], tmp_path / "out", "peft")
    config = AdapterConfig.from_plain(of(tmp_path / "out").config)
    assert (config.r, config.alpha, config.layers) == (4, 4, None)
    assert sorted(config.targets) == sorted(PLAIN.targets)


def test_dora_is_merged_with_a_strength_but_is_no_adapter_of_its_own(
    debug_model: BaseModel, saved: Any, hf: Any, sequence: Tensor, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    adapter = random_adapter(debug_model, VARIANTS["DoRA"])
    mix = [WeightedAdapter(str(saved(adapter)), 0.5)]
    with pytest.raises(AdapterError, match="adapters with DoRA") as refused:
        export(mix, tmp_path / "peft", "peft")
    assert "--format audiocraft or huggingface" in refused.value.next_step
    export(mix, tmp_path / "out", "huggingface")
    half = logits_with(debug_model, [adapter], [0.5], sequence, text_encoder)
    assert near(hf.logits(loaded_by_transformers(tmp_path / "out")), half)


def test_strength_0_alone_is_refused(mix: list[WeightedAdapter], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter has an effect: strength 0 is the base model"):
        export([WeightedAdapter(mix[0].source, 0.0)], tmp_path / "out", "peft")

"""Adapters with strengths: what they sound like, their files, and the grid that compares them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_core import storage
from musicgen_core.errors import AdapterError, ConfigError
from musicgen_core.generation.numbering import identity
from musicgen_core.generation.prompts import Prompt, read_prompts
from musicgen_core.generation.render import render
from musicgen_core.generation.request import Rendered, adapters_of, outcome_of
from musicgen_core.model.adapters import Adapter, save_adapter
from tests.musicgen_core.generation.rendered_files import codes_of, sidecar_of
from tests.musicgen_core.generation.test_page import Parsed


@pytest.fixture(scope="module")
def other(strong_adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "other_lora.pt"
    generator = torch.Generator().manual_seed(1)
    lora = {name: 0.1 * torch.randn(one.shape, generator=generator) for name, one in strong_adapter.lora.items()}
    save_adapter(replace(strong_adapter, lora=lora, epoch=7), storage.as_path(path))
    return path


def codes(pieces: list[Rendered]) -> list[Any]:
    return [codes_of(piece.wav) for piece in pieces]


def test_a_grid_has_the_base_models_codes_at_0_and_the_adapters_at_1(
    request_for: Any, adapter: Path, tmp_path: Path
) -> None:
    grid = render(request_for(adapter=str(adapter), strengths=(0, 0.5, 1), compare=True, save_codes=True))
    both = render(request_for("both", adapter=str(adapter), compare=True, save_codes=True))
    assert [piece.voice for piece in grid[:3]] == ["base model", "with the adapter, strength 0.5", "with the adapter"]
    assert [piece.prompt_number for piece in grid] == [0, 0, 0, 1, 1, 1]  # 0 and --compare are one sample
    found, expected = codes(grid), codes(both)
    for prompt in (0, 1):
        base, half, whole = found[3 * prompt : 3 * prompt + 3]
        assert np.array_equal(base, expected[2 * prompt]) and np.array_equal(whole, expected[2 * prompt + 1])
        assert not np.array_equal(half, base) and not np.array_equal(half, whole)
    path = str(adapter / "lora_weights" / "best_lora.pt")
    assert adapters_of(grid) == [path]
    assert outcome_of(grid) == f"6 samples made with {path} and the base model, in {tmp_path / 'out'}"
    page = Parsed((tmp_path / "out" / "index.html").read_text())
    assert page.texts("h3") == ["Base model", "Strength 0.5", "Strength 1"] * 2
    wavs = [Path(piece.wav).name for piece in grid]
    assert page.all_of("audio", "src") == [f"./{name}" for name in wavs]
    assert [name for name in page.all_of("div", "class") if name] == ["grid", "strengths"] * 2
    again = render(request_for(adapter=str(adapter), strengths=(0, 0.5, 1), save_codes=True))
    assert [piece.wav for piece in again] == [piece.wav for piece in grid]


def test_a_mix_is_recorded_and_its_order_has_no_effect(request_for: Any, adapter: Path, other: Path) -> None:
    parts = [f"{adapter}:0.7", f"{other}:-0.4"]
    [piece] = render(request_for("one", adapter=parts, prompts=["jazz"], save_codes=True))
    [turned] = render(request_for("two", adapter=parts[::-1], prompts=["jazz"], save_codes=True))
    assert np.array_equal(codes_of(piece.wav), codes_of(turned.wav))
    sidecars = [sidecar_of(one.wav) for one in (piece, turned)]
    assert identity(sidecars[0]) == identity(sidecars[1])
    recorded = [(entry["path"], entry["epoch"], entry["strength"]) for entry in sidecars[0]["adapter"]]
    assert recorded == [(str(adapter / "lora_weights" / "best_lora.pt"), 3, 0.7), (str(other), 7, -0.4)]
    assert piece.voice == "with adapters, strengths 0.7 + -0.4"
    # What is recorded makes it again.
    texts = [f"{entry['path']}:{entry['strength']}" for entry in sidecars[0]["adapter"]]
    [again] = render(request_for("three", adapter=texts, prompts=["jazz"], save_codes=True))
    assert np.array_equal(codes_of(again.wav), codes_of(piece.wav))


def test_each_prompt_of_a_file_may_have_its_own_adapters(
    request_for: Any, adapter: Path, other: Path, tmp_path: Path
) -> None:
    lines = [
        {"prompt": "jazz"},
        {"prompt": "jazz", "seed": 1, "adapter": f"{other}:0.5"},
        {"prompt": "jazz", "seed": 2, "adapter": [f"{adapter}:0.5", str(other)]},
        {"prompt": "jazz", "seed": 3, "adapter": "base"},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    pieces = render(request_for(adapter=str(adapter), prompts=read_prompts(str(file)), strengths=(2,)))
    assert [piece.strengths for piece in pieces] == [(2,), (1,), (1, 2), ()]
    assert [Path(piece.wav).stem for piece in pieces] == [f"generated_{number:03d}" for number in range(4)]
    file.write_text(json.dumps({"prompt": "jazz", "adapter": "x:nan"}))
    with pytest.raises(ConfigError, match="x:nan is not an adapter"):
        render(request_for("none", prompts=read_prompts(str(file))))


def test_adapters_of_different_base_models_are_refused_by_both_names(
    request_for: Any, adapter: Path, strong_adapter: Adapter, tmp_path: Path
) -> None:
    small = replace(strong_adapter, base_model="facebook/musicgen-small@sha256:0000000000000000")
    save_adapter(small, storage.as_path(tmp_path / "small_lora.pt"))
    for prompt in (Prompt(prompt="x", adapter=("base",)), Prompt(prompt="x", adapter=(str(adapter),))):
        given = [str(adapter), str(tmp_path / "small_lora.pt")]
        with pytest.raises(AdapterError) as refused:
            render(request_for(adapter=given, prompts=["jazz", prompt]))
        for name in ("best_lora.pt", "small_lora.pt", "facebook/musicgen-small@", strong_adapter.base_model):
            assert name in refused.value.found
    assert not (tmp_path / "out").exists()


def test_strengths_need_an_adapter(request_for: Any) -> None:
    with pytest.raises(ConfigError, match="--strengths needs an adapter"):
        render(request_for(strengths=(0.5, 1)))

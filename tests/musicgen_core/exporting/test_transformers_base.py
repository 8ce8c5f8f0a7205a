"""Exports of adapters whose base model is in transformers' format."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.codec import Codec
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model
from tests.fixture_types import Save
from tests.musicgen_core.exporting.conftest import HF_NAME, PLAIN, PROMPT, near, random_adapter
from tests.musicgen_core.exporting.test_audiocraft import loaded, logits_of


@pytest.fixture(scope="module")
def base(hf_directory: Path) -> BaseModel:
    return find_model(str(hf_directory / HF_NAME))


@pytest.fixture(scope="module")
def adapted(base: BaseModel) -> Adapter:
    return random_adapter(base, PLAIN)


@pytest.fixture
def expected(base: BaseModel, adapted: Adapter, sequence: Tensor) -> Tensor:
    """Return the logits of base and adapter here, [4, 16, 2048]."""
    with torch.inference_mode():
        lm = load_merged(base, adapted, "cpu", torch.float32)
        return lm(sequence, TextEncoder(base.text_encoder).encode([PROMPT]))[0]


def test_an_export_for_audiocraft_gives_the_same_logits_and_codec(
    base: BaseModel, adapted: Adapter, expected: Tensor, saved: Save, sequence: Tensor, tmp_path: Path
) -> None:
    exported = export(saved(adapted), tmp_path / "out", "audiocraft", model=str(base.directory))
    with loaded(tmp_path / "out", tmp_path / "beside") as model:
        found, valid = logits_of(model, sequence)
    shifted = torch.stack([expected[k, k : k + 12] for k in range(4)])
    assert near(found[valid], shifted[valid])
    music = torch.rand(1, 1, 3200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Codec(find_model(str(tmp_path / "out"))).encode(music), Codec(base).encode(music))
    (tmp_path / "a new file").touch()
    modes = {stat.S_IMODE((tmp_path / "out" / name).stat().st_mode) for name in exported.files}
    assert modes == {stat.S_IMODE((tmp_path / "a new file").stat().st_mode)}


def test_an_export_for_peft_loads_on_the_base_model(
    base: BaseModel, adapted: Adapter, expected: Tensor, saved: Save, hf: Any, hf_model: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    export(saved(adapted), tmp_path / "out", "peft", model=str(base.directory))
    model = PeftModel.from_pretrained(hf_model, tmp_path / "out").eval()
    assert near(hf.logits(model), expected)


def test_an_adapter_of_the_same_model_in_audiocrafts_format_is_refused(
    base: BaseModel, adapter: Adapter, saved: Callable[[Adapter], Path], tmp_path: Path
) -> None:
    from musicgen_core.errors import AdapterError

    with pytest.raises(AdapterError, match="was trained on debug@sha256:") as refused:
        export(saved(adapter), tmp_path / "out", "audiocraft", model=str(base.directory))
    assert refused.value.next_step == "Give --model debug"

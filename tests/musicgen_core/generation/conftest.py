from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core import storage
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.request import RenderRequest
from musicgen_core.model.adapters import Adapter, AdapterConfig, save_adapter
from musicgen_core.model.lora import adapter_state, add_lora
from musicgen_core.model.weighted_adapters import parse_adapters, split_adapters
from musicgen_core.model.weights import BaseModel, load_lm


@pytest.fixture(scope="session")
def strong_adapter(debug_model: BaseModel) -> Adapter:
    """One that changes the music at once."""
    settings = AdapterConfig(4, 16)
    generator = torch.Generator().manual_seed(0)
    state = adapter_state(add_lora(load_lm(debug_model), settings))
    lora = {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    return Adapter(lora, settings.plain(), 3, 42, 6.5, debug_model.identity)


@pytest.fixture(scope="module")
def adapter(strong_adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory whose best adapter changes the music."""
    run_dir = tmp_path_factory.mktemp("run")
    save_adapter(strong_adapter, storage.as_path(run_dir / "lora_weights" / "best_lora.pt"))
    return run_dir


@pytest.fixture
def request_for(debug_model: BaseModel, tmp_path: Path) -> Any:
    def make(name: str = "out", **given: Any) -> RenderRequest:
        settings = SamplingSettings(duration=given.pop("duration", 0.6), **given.pop("settings", {}))
        prompts = [
            one if isinstance(one, Prompt) else Prompt(prompt=one)
            for one in given.pop("prompts", ("slow piano", "a fast breakbeat, 174 bpm"))
        ]
        values: dict[str, Any] = {"adapters": parse_adapters(split_adapters(given.pop("adapter", ())))}
        values |= {"out": str(tmp_path / name), "model": str(debug_model.directory), "spectrograms": False, **given}
        return RenderRequest(**{"device": "cpu", "settings": settings, "prompts": prompts, **values})

    return make

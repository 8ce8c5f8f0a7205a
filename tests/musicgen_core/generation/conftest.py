from __future__ import annotations

import pytest
import torch

from musicgen_core.model.lora import Adapter, LoraSettings, adapter_state, add_lora
from musicgen_core.model.weights import BaseModel, load_lm


@pytest.fixture(scope="session")
def strong_adapter(debug_model: BaseModel) -> Adapter:
    """One that changes the music at once."""
    settings = LoraSettings(4, 16)
    generator = torch.Generator().manual_seed(0)
    state = adapter_state(add_lora(load_lm(debug_model), settings))
    lora = {name: 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    return Adapter(lora, settings.plain(), 3, 42, 6.5, debug_model.identity)

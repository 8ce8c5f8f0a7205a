"""Adapters of every variant, with random weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.lora import adapter_state, add_lora
from musicgen_core.model.weights import BaseModel, load_lm

SETTINGS = AdapterConfig(r=4, alpha=16, dropout=0.1)
SOME = ("q_proj", "encoder_attn.v_proj", "layers.0.fc1")
VARIANTS = {
    "LoRA": SETTINGS,
    "rsLoRA": dataclasses.replace(SETTINGS, rslora=True),
    "DoRA": dataclasses.replace(SETTINGS, dora=True),
    "some layers": dataclasses.replace(SETTINGS, targets=SOME),
    "one block": dataclasses.replace(SETTINGS, layers=(1,)),
    "ranks": dataclasses.replace(SETTINGS, ranks={0: 2, 1: 6}, rslora=True),
    "all of it": dataclasses.replace(SETTINGS, targets=SOME, rslora=True, dora=True),
}


def random_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter that changes something: a fresh one's lora_B is zero, and its magnitudes are the base's."""
    generator = torch.Generator().manual_seed(1)
    noise = {n: 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64) for n, t in state.items()}
    return {name: t * (1 + noise[name]) if "magnitude" in name else noise[name] for name, t in state.items()}


def random_adapter(model: BaseModel, settings: AdapterConfig) -> Adapter:
    state = random_state(adapter_state(add_lora(load_lm(model), settings)))
    lora = {name: tensor.float() for name, tensor in state.items()}
    return Adapter(lora, settings.plain(), epoch=2, global_step=30, loss=6.5, base_model=model.identity)

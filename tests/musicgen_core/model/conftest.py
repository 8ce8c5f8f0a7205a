"""Fixtures: models of stock audiocraft, the oracle of these tests."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model.debug_model import LM_CONFIG
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.weights import BaseModel, load_lm


@pytest.fixture(scope="session")
def lm(debug_model: BaseModel) -> MusicgenLM:
    return load_lm(debug_model)


@pytest.fixture(scope="session")
def t5_directory(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which audiocraft's T5Conditioner finds the debug text encoder under the name `t5-small`."""
    directory = tmp_path_factory.mktemp("audiocraft")
    (directory / "t5-small").symlink_to(debug_model.text_encoder)
    return directory


@pytest.fixture(scope="session")
def audiocraft_lm(debug_model: BaseModel, t5_directory: Path) -> Any:
    """audiocraft's LMModel, read by audiocraft's loader from the debug model's files."""
    loaders = import_audiocraft("audiocraft.models.loaders")
    with contextlib.chdir(t5_directory):
        return loaders.load_lm_model(str(debug_model.lm_path))


@pytest.fixture(scope="session")
def other_audiocraft_lm(t5_directory: Path) -> Any:
    """audiocraft's LMModel of another shape, all its weights random: the norms too, so that none can be mistaken."""
    builders = import_audiocraft("audiocraft.models.builders")
    config = OmegaConf.merge(
        OmegaConf.create(LM_CONFIG), {"transformer_lm": {"dim": 96, "num_layers": 3, "num_heads": 6, "hidden_scale": 2}}
    )
    with contextlib.chdir(t5_directory):
        model = builders.get_lm_model(config).eval()
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            parameter.copy_(1 + 0.2 * noise if parameter.ndim == 1 else noise / parameter.shape[-1] ** 0.5)
    model.cfg = config
    return model

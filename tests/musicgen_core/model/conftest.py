"""Fixtures: models of stock audiocraft, the oracle of these tests; random adapters; a repository on the Hub."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import MONO
from musicgen_core.errors import ModelError
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.debug_model import LM_CONFIG
from musicgen_core.model.decoder import Condition, MusicgenLM, delay
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.model.adapters import SETTINGS, VARIANTS, random_adapter
from tests.musicgen_core.model.hub_downloads import FILES, REPO
from tests.stand_in_hub import Repository, StandInHub


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


@pytest.fixture
def repository(hub: StandInHub) -> Repository:
    hub.repositories[REPO] = Repository(dict(FILES))
    return hub.repositories[REPO]


@pytest.fixture(scope="session")
def adapter(debug_model: BaseModel) -> Adapter:
    return random_adapter(debug_model, SETTINGS)


@pytest.fixture(scope="session", params=VARIANTS)
def any_adapter(debug_model: BaseModel, request: pytest.FixtureRequest) -> Adapter:
    return random_adapter(debug_model, VARIANTS[request.param])


@pytest.fixture(scope="session")
def sequence() -> Tensor:
    return delay(torch.randint(2048, (2, 4, 10), generator=torch.Generator().manual_seed(0)), MONO)


@pytest.fixture(scope="session")
def text(text_encoder: TextEncoder) -> Condition:
    return text_encoder.encode(["slow piano", None])


@contextlib.contextmanager
def refused(*found: str, next_step: str) -> Iterator[None]:
    """A ModelError of one line that says what was found and what to do."""
    with pytest.raises(ModelError) as error:
        yield
    assert [word for word in found if word not in error.value.found] == []
    assert next_step in error.value.next_step
    assert "\n" not in str(error.value)


def assert_same_state(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


@pytest.fixture
def model_directory(debug_model: BaseModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(debug_model.directory, tmp_path / "model"))

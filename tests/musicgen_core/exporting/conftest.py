"""The debug model in Hugging Face's format, as a reference beside stock audiocraft, and adapters of every kind."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.codes import MONO
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.engine import Engine
from musicgen_core.model.adapters import Adapter, AdapterConfig, find_adapter, load_adapter, save_adapter
from musicgen_core.model.decoder import delay
from musicgen_core.model.lora import adapter_state, add_lora, load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.seeds import streams_of
from tests.transformers_model import HfOracle, in_transformers

PLAIN = AdapterConfig(r=4, alpha=16, dropout=0.1)
SOME = ("q_proj", "encoder_attn.v_proj", "layers.0.fc1")
VARIANTS = {
    "LoRA": PLAIN,
    "another scale": dataclasses.replace(PLAIN, r=3, alpha=5.5),
    "rsLoRA": dataclasses.replace(PLAIN, rslora=True),
    "DoRA": dataclasses.replace(PLAIN, dora=True),
    "some layers": dataclasses.replace(PLAIN, targets=SOME),
    "one block": dataclasses.replace(PLAIN, layers=(1,)),
    "ranks": dataclasses.replace(PLAIN, ranks={0: 2, 1: 6}, rslora=True),
    "all of it": dataclasses.replace(PLAIN, targets=SOME, rslora=True, dora=True),
}
PROMPT, FRAMES, GUIDANCE = "slow piano", 40, 3.0
HF_NAME = "debug"
LogitsOf = Callable[[Adapter | None], Tensor]
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
MadeByPeft = Callable[..., Any]


def random_adapter(model: BaseModel, settings: AdapterConfig) -> Adapter:
    """Return an adapter with random weights, which changes the output."""
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for name, tensor in adapter_state(add_lora(load_lm(model), settings)).items():
        noise = 0.1 * torch.randn(tensor.shape, generator=generator)
        lora[name] = tensor * (1 + noise) if "magnitude" in name else noise
    return Adapter(lora, settings.plain(), epoch=2, global_step=30, loss=6.5, base_model=model.identity)


@pytest.fixture(scope="session")
def adapter(debug_model: BaseModel) -> Adapter:
    return random_adapter(debug_model, PLAIN)


@pytest.fixture(scope="session", params=VARIANTS)
def any_adapter(debug_model: BaseModel, request: pytest.FixtureRequest) -> Adapter:
    return random_adapter(debug_model, VARIANTS[request.param])


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Adapter], Path]:
    """Write an adapter as a training run does, outside of a run directory, and return its path."""

    def save(adapter: Adapter) -> Path:
        path = tmp_path / "some_lora.pt"
        save_adapter(adapter, storage.as_path(path))
        return path

    return save


@pytest.fixture(scope="session")
def sequence() -> Tensor:
    """Return delayed codes [1, 4, 16]."""
    return delay(torch.randint(2048, (1, 4, 12), generator=torch.Generator().manual_seed(0)), MONO)


@pytest.fixture(scope="session")
def our_logits(debug_model: BaseModel, text_encoder: TextEncoder, sequence: Tensor) -> Callable[..., Tensor]:
    """Return this project's logits with an adapter, [4, 16, 2048]."""

    @torch.inference_mode()
    def compute(adapter: Adapter | None) -> Tensor:
        lm = load_merged(debug_model, adapter, "cpu", torch.float32)
        return lm(sequence, text_encoder.encode([PROMPT]))[0]

    return compute


@pytest.fixture(scope="session")
def our_codes(debug_model: BaseModel) -> Callable[..., Tensor]:
    """Return this project's greedy codes with an adapter, [4, FRAMES], in fp64 to avoid ties by rounding."""
    text = TextEncoder(debug_model.text_encoder)
    text.t5.double()

    def generate(adapter: Adapter | None) -> Tensor:
        engine = Engine(load_merged(debug_model, adapter, "cpu", torch.float64), text, GUIDANCE)
        settings = SamplingSettings(duration=FRAMES / 50, greedy=True)
        return engine.generate([PROMPT], settings, streams_of(0, [PROMPT]))[0]

    return generate


@pytest.fixture(scope="session")
def hf_directory(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the debug model and its processor for Hugging Face's `from_pretrained("debug")`."""
    from transformers import AutoTokenizer, EncodecFeatureExtractor, MusicgenProcessor

    directory = tmp_path_factory.mktemp("hugging-face")
    in_transformers(debug_model).save_pretrained(directory / HF_NAME)
    features = EncodecFeatureExtractor(sampling_rate=32_000, padding_side="left")
    MusicgenProcessor(features, AutoTokenizer.from_pretrained(debug_model.text_encoder)).save_pretrained(
        directory / HF_NAME
    )
    return directory


@pytest.fixture
def hf_model(hf_directory: Path) -> Any:
    """Return a new Hugging Face model, as peft modifies it in place."""
    from transformers import MusicgenForConditionalGeneration

    return MusicgenForConditionalGeneration.from_pretrained(hf_directory / HF_NAME).eval()


@pytest.fixture(scope="session")
def hf(text_encoder: TextEncoder, sequence: Tensor) -> HfOracle:
    return HfOracle(text_encoder.tokenizer, sequence, PROMPT, FRAMES, GUIDANCE)


@pytest.fixture(autouse=True)
def _peft_warns_of_nothing() -> Iterator[None]:
    """peft only warns of unexpected or missing keys; make that an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*(missing|unexpected|Unexpected|not found).*")
        yield


def near(found: Tensor, expected: Tensor) -> bool:
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    print(f"largest difference: {difference:.1e} of the largest logit")  # what bench/RESULTS.md tells; -rP shows it
    return difference < 1e-5


@pytest.fixture
def made_by_peft(hf_model: Any, tmp_path: Path) -> MadeByPeft:
    """Return a factory: peft's LoraConfig settings → Hugging Face's model with such an adapter, saved in tmp_path."""
    from peft import LoraConfig, get_peft_model

    def make(on: Any = hf_model, pickled: bool = False, **settings: Any) -> Any:
        model = get_peft_model(on, LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": TARGETS, **settings}))
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.data = parameter.data * (1 + noise) if "magnitude" in name else noise
        model.save_pretrained(str(tmp_path / "peft"))
        if pickled:  # as older versions of peft wrote it
            from safetensors.torch import load_file

            weights = tmp_path / "peft" / "adapter_model.safetensors"
            torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
            weights.unlink()
        return model.eval()

    return make


def of(folder: Path) -> Adapter:
    return load_adapter(find_adapter(folder))

"""Generation with a melody against stock audiocraft and Hugging Face, and each sample's independence of the others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import SamplingSettings
from musicgen_core.exporting.export import export
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.melody import Melody, window_chroma
from musicgen_core.model.adapters import AdapterConfig, load_adapter, save_adapter
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from tests.melody_model import audiocraft_melody_lm, make_melody_model
from tests.musicgen_core.melodies import condition_of, music
from tests.musicgen_core.model.adapters import random_adapter
from tests.transformers_model import HfOracle

GUIDANCE = 3.0
PROMPTS = ["slow piano", "a fast breakbeat with a distorted bass line", "bells", "bells and more"]
TUNE, OTHER = (Melody(music()[start * SAMPLE_RATE :][: 7 * SAMPLE_RATE], f"{start}.wav", "") for start in (0, 20))


@pytest.fixture(scope="module")
def model(
    request: pytest.FixtureRequest, debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory
) -> BaseModel:
    """A model of mono sound, unless a test asks for another number of channels."""
    folder = tmp_path_factory.mktemp("models") / "melody"
    return make_melody_model(folder, debug_model, channels=getattr(request, "param", 1))


@pytest.fixture(scope="module")
def engine(model: BaseModel) -> Engine:
    """In fp64, text encoder included: greedy decoding then hangs on no rounding."""
    text = TextEncoder(model.text_encoder)
    text.t5.double()
    return Engine(load_lm(model, dtype=torch.float64), text, GUIDANCE)


@pytest.fixture
def theirs(model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """audiocraft's `MusicGen` of the model, in fp64 but for the chroma."""
    lm = audiocraft_melody_lm(model, tmp_path, monkeypatch).double()
    lm.condition_provider.conditioners["description"].t5.double()
    lm.condition_provider.conditioners["self_wav"].chroma.float()
    codec = import_audiocraft("audiocraft.models.loaders").load_compression_model(str(model.codec_path))
    return import_audiocraft("audiocraft.models").MusicGen("debug", codec, lm, max_duration=30)


def audiocrafts_codes(
    musicgen: Any, text: str | None, melody: Melody | None, seconds: float, overlap: float = 12, window: float = 30
) -> Tensor:
    musicgen.max_duration = window
    musicgen.set_generation_params(
        use_sampling=False, duration=seconds, extend_stride=window - overlap, cfg_coef=GUIDANCE
    )
    [condition], _ = musicgen._prepare_tokens_and_attributes([text], None)
    condition.wav["self_wav"] = condition_of(torch.zeros(1) if melody is None else melody.wav)
    with torch.inference_mode():
        return musicgen._generate_tokens([condition], None)[0]


@pytest.mark.parametrize("model", [1, 2], ids=["mono", "stereo"], indirect=True)
def test_greedy_codes_are_audiocrafts_over_200_steps(engine: Engine, theirs: Any) -> None:
    texts, melodies = PROMPTS[:2], [TUNE, None]
    found = engine.generate(texts, SamplingSettings(duration=4, greedy=True), [0, 1], melodies=melodies)
    for codes, text, melody in zip(found, texts, melodies, strict=True):
        assert torch.equal(codes, audiocrafts_codes(theirs, text, melody, seconds=4))


def test_greedy_codes_are_audiocrafts_window_by_window(engine: Engine, theirs: Any) -> None:
    settings = SamplingSettings(duration=3, overlap=0.5, greedy=True)
    [codes] = replace(engine, window=100).generate(PROMPTS[:1], settings, [0], melodies=[TUNE])
    assert torch.equal(codes, audiocrafts_codes(theirs, PROMPTS[0], TUNE, seconds=3, overlap=0.5, window=2))


def test_greedy_codes_are_hugging_faces(model: BaseModel, engine: Engine, tmp_path: Path) -> None:
    from transformers import MusicgenMelodyForConditionalGeneration

    adapter = storage.as_path(tmp_path / "some_lora.pt")
    save_adapter(random_adapter(model, AdapterConfig(4, 16, 0.0)), adapter)
    export(adapter, tmp_path / "exported", "huggingface", model.name)
    chroma = one_hot(window_chroma(TUNE.wav, 235, None), 12)[None].double()
    theirs = MusicgenMelodyForConditionalGeneration.from_pretrained(tmp_path / "exported").eval()
    theirs.generate = partial(theirs.generate, input_features=chroma)
    sequence = torch.zeros(1, model.codes.codebooks, 1)
    oracle = HfOracle(engine.text.tokenizer, sequence, PROMPTS[0], 50, GUIDANCE)
    lm = load_merged(model, load_adapter(adapter), "cpu", torch.float64)
    [codes] = replace(engine, lm=lm).generate(
        PROMPTS[:1], SamplingSettings(duration=1, greedy=True), [0], melodies=[TUNE]
    )
    assert torch.equal(codes[:: model.codes.channels], oracle.codes(theirs))  # of the left channel


def test_a_samples_codes_depend_on_its_own_text_and_melody_alone(engine: Engine) -> None:
    settings, melodies, lengths = SamplingSettings(overlap=0.4), [TUNE, OTHER, None, TUNE], [30, 80, 51, 30]
    shape, generator = (4, engine.lm.config.codebooks, 5), torch.Generator().manual_seed(0)
    windowed, known = replace(engine, window=50), torch.randint(2048, shape, generator=generator)
    together = windowed.generate(PROMPTS, settings, range(4), frames=lengths, known=known, melodies=melodies)
    for row, codes in enumerate(together):
        [alone] = windowed.generate(
            PROMPTS[row : row + 1],
            settings,
            [row],
            frames=lengths[row : row + 1],
            known=known[row : row + 1],
            melodies=melodies[row : row + 1],
        )
        assert torch.equal(codes, alone)
    [without] = windowed.generate(PROMPTS[:1], settings, [0], frames=lengths[:1], known=known[:1])
    assert not torch.equal(without, together[0])

"""Models that take a melody, beside audiocraft and Hugging Face."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import AdapterConfig, find_adapter, load_adapter, save_adapter
from musicgen_core.model.decoder import Condition, MusicgenLM, delay
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from tests.melody_model import audiocraft_melody_lm, make_melody_model
from tests.musicgen_core.model.adapters import random_adapter

TEXTS = ["slow piano", "a"]


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def model(
    request: pytest.FixtureRequest, debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory
) -> BaseModel:
    folder = tmp_path_factory.mktemp("models") / "melody"
    return find_model(make_melody_model(folder, debug_model, channels=request.param).name)


def chroma_of(clips: int, frames: int = 235, seed: int = 0) -> Tensor:
    return torch.randint(12, (clips, frames), generator=torch.Generator().manual_seed(seed))


def sequence_of(lm: MusicgenLM, clips: int = 1) -> Tensor:
    shape = (clips, lm.config.codebooks, 9)
    codes = torch.randint(lm.config.cardinality, shape, generator=torch.Generator().manual_seed(0))
    return delay(codes, lm.config.codes)


def conditions(text: TextEncoder, texts: list[str | None], chroma: Tensor) -> Condition:
    encoded = text.encode(texts)
    return Condition(encoded.states, encoded.mask, chroma)


def their_condition(text: str | None, wav: Tensor) -> Any:
    """audiocraft's condition of a text and a melody wav [1, samples]."""
    module = import_audiocraft("audiocraft.modules.conditioners")
    wavs = {"self_wav": module.WavCondition(wav[None], torch.tensor([wav.shape[-1]]), [32_000], [None], [0.0])}
    return module.ConditioningAttributes(text={"description": text}, wav=wavs)


@torch.inference_mode()
def test_logits_are_audiocrafts(
    model: BaseModel, text_encoder: TextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, lm = audiocraft_melody_lm(model, tmp_path, monkeypatch), load_lm(model)
    tones = [440 * 2 ** (step / 12) for step in (0, 3, 7, 10)]
    time = torch.arange(32_000) / 32_000
    melody = torch.cat([torch.sin(2 * torch.pi * tone * time) for tone in tones])[None]
    chroma = theirs.condition_provider.conditioners["self_wav"].chroma(melody)
    for wav, classes in ((melody, chroma.argmax(-1)), (torch.zeros(1, 1), torch.zeros(1, 1).long())):
        repeated = classes.repeat(1, 235)[:, :235]  # as `MusicGen.get_pretrained` asks for
        for text in ("slow piano", None):
            expected = theirs(sequence_of(lm), [their_condition(text, wav)])
            found = lm(sequence_of(lm), conditions(text_encoder, [text], repeated))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(set(chroma.argmax(-1)[0].tolist())) == 4


@torch.inference_mode()
def test_logits_are_hugging_faces_and_files_of_each_format_hold_the_same_model(
    model: BaseModel, tmp_path: Path
) -> None:
    from transformers import AutoProcessor, MusicgenMelodyForConditionalGeneration

    adapter = storage.as_path(tmp_path / "some_lora.pt")
    save_adapter(random_adapter(model, AdapterConfig(4, 16, 0.0)), adapter)
    for kind in ("huggingface", "audiocraft", "peft"):
        export(adapter, tmp_path / kind, kind, model.name)
    lm, text = load_merged(model, load_adapter(adapter), "cpu", torch.float32), TextEncoder(model.text_encoder)
    theirs = MusicgenMelodyForConditionalGeneration.from_pretrained(tmp_path / "huggingface").eval()
    chroma, sequence = chroma_of(1), sequence_of(lm)
    condition = conditions(text, ["slow piano"], chroma)
    processor = AutoProcessor.from_pretrained(tmp_path / "huggingface")
    entries = processor(text=["slow piano"], return_tensors="pt")
    found = theirs(
        **entries,
        input_features=torch.nn.functional.one_hot(chroma, 12).float(),
        decoder_input_ids=sequence.flatten(0, 1),
    )
    expected = lm(sequence, condition)
    steps = sequence.shape[-1]
    torch.testing.assert_close(found.logits[:, -steps:], expected.flatten(0, 1), atol=1e-4, rtol=0)
    for directory in ("huggingface", "audiocraft"):
        again = find_model(str(tmp_path / directory))
        assert (again.codes, again.chroma_frames) == (model.codes, 235)
        assert (again.config.melody_dropout, again.config.training_dropout) == (0.5, 0.2)
        torch.testing.assert_close(load_lm(again)(sequence, condition), expected, atol=1e-4, rtol=0)
    from_peft = load_merged(model, load_adapter(find_adapter(str(tmp_path / "peft"))), "cpu", torch.float32)
    torch.testing.assert_close(from_peft(sequence, condition), expected, atol=1e-5, rtol=0)
    for name in ("peft", "huggingface"):
        assert (
            "import AutoProcessor, MusicgenMelodyForConditionalGeneration"
            in (tmp_path / name / "README.md").read_text()
        )
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == "MusicgenMelodyForConditionalGeneration"


@torch.inference_mode()
def test_a_clips_logits_depend_on_its_own_text_and_melody_alone(model: BaseModel, text_encoder: TextEncoder) -> None:
    lm, chroma = load_lm(model), chroma_of(2)
    together = lm(sequence_of(lm, 2), conditions(text_encoder, list(TEXTS), chroma))
    for row, text in enumerate(TEXTS):
        alone = lm(sequence_of(lm, 2)[row : row + 1], conditions(text_encoder, [text], chroma[row : row + 1]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)
    other = lm(sequence_of(lm, 2), conditions(text_encoder, list(TEXTS), chroma_of(2, seed=1)))
    assert (together - other).abs().max() > 0.01

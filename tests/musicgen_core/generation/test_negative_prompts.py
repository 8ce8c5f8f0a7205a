"""Negative prompts: guidance leads away from their text, as audiocraft's guidance does from the null condition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.melody import Melody
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from tests.melody_model import audiocraft_melody_lm, make_melody_model
from tests.musicgen_core.generation.test_engine import exact_audiocraft_of
from tests.musicgen_core.melodies import condition_of, music

GUIDANCE = 3.0
PROMPT, NEGATIVE = "slow piano", "a fast breakbeat with a distorted bass line, 174 bpm"
GREEDY = SamplingSettings(duration=2, greedy=True)


def exact_engine(model: BaseModel) -> Engine:
    """In fp64, text encoder included: greedy decoding then hangs on no rounding."""
    text = TextEncoder(model.text_encoder)
    text.t5.double()
    return Engine(load_lm(model, dtype=torch.float64), text, GUIDANCE)


def audiocrafts_codes(lm: Any, given: Any, negative: str, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Codes of stock audiocraft with a text in its null condition, each condition in a forward pass of its own."""

    class NegativePrompt:
        def __init__(self, p: float) -> None:
            assert p == 1

        def __call__(self, conditions: list[Any]) -> list[Any]:
            found = null(conditions)
            for condition in found:
                condition.text["description"] = negative
            return found  # type: ignore[no-any-return]

    module = import_audiocraft("audiocraft.models.lm")
    null = module.ClassifierFreeGuidanceDropout(p=1.0)
    monkeypatch.setattr(module, "ClassifierFreeGuidanceDropout", NegativePrompt)
    lm.cfg_coef, lm.two_step_cfg = GUIDANCE, True
    with torch.inference_mode():
        return lm.generate(conditions=[given], max_gen_len=100, use_sampling=False)[0]  # type: ignore[no-any-return]


def test_greedy_codes_are_those_of_audiocrafts_guidance_from_the_negative_text(
    debug_model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes = import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes
    lm = exact_audiocraft_of(debug_model, debug_model.lm_path, tmp_path)
    engine = exact_engine(debug_model)
    expected = audiocrafts_codes(lm, attributes(text={"description": PROMPT}), NEGATIVE, monkeypatch)
    led, without = engine.generate([PROMPT] * 2, GREEDY, [0, 1], negatives=[NEGATIVE, None])
    assert torch.equal(led, expected)
    assert torch.equal(without, engine.generate([PROMPT], GREEDY, [1])[0])
    assert not torch.equal(led, without)


def test_a_melody_models_greedy_codes_are_audiocrafts_with_the_negative_text(
    debug_model: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tune = make_melody_model(tmp_path / "model", debug_model), Melody(music(), "tune.wav", "")
    lm = audiocraft_melody_lm(model, tmp_path, monkeypatch).double()
    lm.condition_provider.conditioners["description"].t5.double()
    lm.condition_provider.conditioners["self_wav"].chroma.float()
    attributes = import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes
    given = attributes(text={"description": PROMPT}, wav={"self_wav": condition_of(tune.wav)})
    expected = audiocrafts_codes(lm, given, NEGATIVE, monkeypatch)
    engine = exact_engine(model)
    [led] = engine.generate([PROMPT], GREEDY, [0], melodies=[tune], negatives=[NEGATIVE])
    assert torch.equal(led, expected)
    assert not torch.equal(led, engine.generate([PROMPT], GREEDY, [0], melodies=[tune])[0])


def test_an_empty_negative_prompt_is_none(debug_model: BaseModel, text_encoder: TextEncoder) -> None:
    engine, settings = Engine(load_lm(debug_model), text_encoder, GUIDANCE), SamplingSettings(duration=0.5)
    without, empty, same = (
        engine.generate([PROMPT], settings, [7], negatives=negatives)[0] for negatives in (None, [""], [None])
    )
    assert torch.equal(without, empty) and torch.equal(without, same)

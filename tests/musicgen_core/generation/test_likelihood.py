"""The judge: how likely known frames are after others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from demo_model.measure import compose_each, render
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codec import Codec
from musicgen_core.generation.engine import Engine
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from musicgen_core.synthesis.rendering import SoundBank
from tests.musicgen_core.generation.test_engine import exact_audiocraft_of

PROMPT = "slow piano"


def engine_of(model: BaseModel, dtype: torch.dtype, window: int = 1500) -> Engine:
    text = TextEncoder(model.text_encoder)
    text.t5.to(dtype)
    return Engine(load_lm(model, dtype=dtype), text, guidance=3.0, window=window)


def test_the_log_likelihood_is_that_of_audiocrafts_predictions(debug_model: BaseModel, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2048, (4, 50), generator=generator)
    attributes = import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes
    lm = exact_audiocraft_of(debug_model, debug_model.lm_path, tmp_path)
    with torch.inference_mode():
        predicted = lm.compute_predictions(codes[None], conditions=[attributes(text={"description": PROMPT})])
    counted = predicted.mask[0].clone()
    counted[:, :30] = False
    expected = -F.cross_entropy(predicted.logits[0][counted], codes[counted]).item()
    engine = engine_of(debug_model, torch.float64)
    [found] = engine.log_likelihoods(PROMPT, [codes[:, :30]], codes[:, 30:])
    assert found == pytest.approx(expected, rel=1e-5)  # the engine's positions and softmax are in fp32
    [cut] = engine_of(debug_model, torch.float64, window=35).log_likelihoods(PROMPT, [codes[:, :30]], codes[:, 30:])
    [short] = engine.log_likelihoods(PROMPT, [codes[:, 15:30]], codes[:, 30:])
    assert cut == short != found


def test_what_really_follows_is_likelier_than_shuffled_and_foreign_frames() -> None:
    model = find_model("demo")
    codec, engine = Codec(model), engine_of(model, torch.float32)
    clips = compose_each(["techno", "piano"], 1, 7)
    codes = codec.encode(render(SoundBank(), clips)[:, None])
    for clip, own, foreign in zip(clips, codes, codes.flip(0), strict=True):
        following = own[:, 300:400]
        shuffled = own[:, torch.randperm(300, generator=torch.Generator().manual_seed(0))]
        continued, *others = engine.log_likelihoods(clip.caption, [own[:, :300], shuffled, foreign[:, :300]], following)
        assert continued > max(others) + 0.1

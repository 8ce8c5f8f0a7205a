"""Generation against stock audiocraft, and each prompt's independence of the others."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import Cancelled
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.streams import stream_seed
from musicgen_core.model.decoder import TextCondition
from musicgen_core.model.pattern import delay
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm

GUIDANCE = 3.0
PROMPTS = ["slow piano", "a fast breakbeat with a distorted bass line, 174 bpm", "bells"]
SAMPLED = SamplingSettings(duration=0.5)


@pytest.fixture(scope="module")
def engine(debug_model: BaseModel, text_encoder: TextEncoder) -> Engine:
    return Engine(load_lm(debug_model), text_encoder, GUIDANCE)


@pytest.fixture(scope="module")
def exact_engine(debug_model: BaseModel) -> Engine:
    """In fp64, text encoder included: greedy decoding then hangs on no rounding."""
    text = TextEncoder(debug_model.text_encoder)
    text.t5.double()
    return Engine(load_lm(debug_model, dtype=torch.float64), text, GUIDANCE)


@pytest.fixture(scope="module")
def exact_audiocraft(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """audiocraft's LMModel of the same files in fp64."""
    directory = tmp_path_factory.mktemp("audiocraft")
    (directory / "t5-small").symlink_to(Path(debug_model.text_encoder))
    loaders = import_audiocraft("audiocraft.models.loaders")
    with contextlib.chdir(directory):
        lm = loaders.load_lm_model(str(debug_model.lm_path)).double()
    lm.condition_provider.conditioners["description"].t5.double()
    return lm.eval()


def audiocraft_greedy(lm: Any, prompt: str | None, frames: int) -> Tensor:
    attributes = import_audiocraft("audiocraft.modules.conditioners").ConditioningAttributes
    with torch.inference_mode():
        return lm.generate(
            conditions=[attributes(text={"description": prompt})],
            max_gen_len=frames,
            use_sampling=False,
            cfg_coef=GUIDANCE,
            check=True,
        )


@pytest.fixture(scope="module")
def expected(exact_audiocraft: Any) -> dict[str | None, Tensor]:
    """audiocraft's codes of 200 frames for each prompt by itself, [1, 4, 200]."""
    return {prompt: audiocraft_greedy(exact_audiocraft, prompt, 200) for prompt in [*PROMPTS, None, ""]}


@pytest.mark.parametrize(
    "prompts", [PROMPTS[:1], [None], [""], PROMPTS], ids=["one prompt", "null", "empty", "three lengths"]
)
def test_greedy_codes_are_audiocrafts_over_200_steps(
    exact_engine: Engine, expected: dict[str | None, Tensor], prompts: list[str | None]
) -> None:
    settings = SamplingSettings(duration=4, greedy=True)
    codes = exact_engine.generate(prompts, settings, streams=range(len(prompts)))
    assert torch.equal(codes, torch.cat([expected[prompt] for prompt in prompts]))


def test_greedy_codes_follow_the_text(expected: dict[str | None, Tensor]) -> None:
    assert not torch.equal(expected[PROMPTS[0]], expected[PROMPTS[2]])
    assert not torch.equal(expected[PROMPTS[0]], expected[None])


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_the_shortest_pieces_are_audiocrafts_too(exact_engine: Engine, exact_audiocraft: Any, frames: int) -> None:
    settings = SamplingSettings(duration=frames / 50, greedy=True)
    codes = exact_engine.generate(PROMPTS[:1], settings, [0])
    assert torch.equal(codes, audiocraft_greedy(exact_audiocraft, PROMPTS[0], frames))


def test_codes_have_a_frame_every_20_ms_and_no_special_ones(engine: Engine) -> None:
    codes = engine.generate(PROMPTS, SamplingSettings(duration=0.7), [1, 2, 3])
    assert (codes.shape, codes.dtype) == ((3, 4, 35), torch.int64)
    assert 0 <= codes.min() and codes.max() < 2048


@pytest.mark.parametrize("settings", [SAMPLED, SamplingSettings(duration=0.5, top_p=0.9)], ids=["top-k", "top-p"])
def test_a_prompts_codes_do_not_depend_on_the_others_or_their_order(engine: Engine, settings: SamplingSettings) -> None:
    streams = [stream_seed(settings.seed, prompt) for prompt in PROMPTS]
    together = engine.generate(PROMPTS, settings, streams)
    backwards = engine.generate(PROMPTS[::-1], settings, streams[::-1])
    assert torch.equal(backwards.flip(0), together)
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(engine.generate([prompt], settings, [streams[i]])[0], together[i])


def test_a_stream_decides_the_codes(engine: Engine) -> None:
    codes = engine.generate(PROMPTS[:1] * 3, SAMPLED, [1, 2, 1])
    assert torch.equal(codes[0], codes[2])
    assert not torch.equal(codes[0], codes[1])


def test_streams_of_other_seeds_and_prompts_are_other_streams() -> None:
    prompts = ["jazz", "jazz ", "rock"]
    streams = {stream_seed(seed, prompt, again) for seed in range(50) for prompt in prompts for again in range(10)}
    assert len(streams) == 50 * 3 * 10


def test_a_longer_piece_begins_with_the_shorter_one(engine: Engine) -> None:
    shorter = engine.generate(PROMPTS[:1], SAMPLED, [5])
    longer = engine.generate(PROMPTS[:1], SamplingSettings(duration=1), [5])
    frames = shorter.shape[-1]
    for k in range(4):  # the last k frames come beside frames of codebook 0 that only the longer piece has
        assert torch.equal(longer[:, k, : frames - k], shorter[:, k, : frames - k])


def test_the_settings_guidance_stands_before_the_models(debug_model: BaseModel, engine: Engine) -> None:
    given = SAMPLED.model_copy(update={"guidance": 1.0})
    models_own = Engine(engine.lm, engine.text, 1.0)
    codes = engine.generate(PROMPTS[:1], given, [0])
    assert torch.equal(codes, models_own.generate(PROMPTS[:1], SAMPLED, [0]))
    assert not torch.equal(codes, engine.generate(PROMPTS[:1], SAMPLED, [0]))


@torch.inference_mode()
def test_each_step_with_the_cache_chooses_what_the_whole_sequence_says(exact_engine: Engine) -> None:
    codes = exact_engine.generate(PROMPTS, SamplingSettings(duration=0.5, greedy=True), [0, 1, 2])
    text = exact_engine.text.encode(PROMPTS)
    null = TextCondition(torch.zeros_like(text.states), torch.zeros_like(text.mask))
    sequence = delay(codes, special=2048)[..., :-1]
    conditional, unconditional = exact_engine.lm(sequence, text), exact_engine.lm(sequence, null)
    chosen = (unconditional + GUIDANCE * (conditional - unconditional)).argmax(dim=-1)
    for k in range(4):
        assert torch.equal(chosen[:, k, k : k + codes.shape[-1]], codes[:, k])


def test_every_step_is_reported(engine: Engine) -> None:
    reports: list[tuple[int, int]] = []
    engine.generate(PROMPTS[:1], SamplingSettings(duration=0.1), [0], lambda *report: reports.append(report))
    assert reports == [(step, 8) for step in range(1, 9)]  # 5 frames, and 3 more columns for the delays


def test_told_to_stop_it_raises_before_the_next_step(engine: Engine) -> None:
    done: list[int] = []
    with pytest.raises(Cancelled, match="step 3 of 28"):
        engine.generate(PROMPTS[:1], SAMPLED, [0], lambda step, _: done.append(step), lambda: len(done) == 3)
    assert done == [1, 2, 3]

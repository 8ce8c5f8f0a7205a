"""Generation against stock audiocraft, and each prompt's independence of the others."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import MONO
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import Cancelled, DeviceError
from musicgen_core.generation.engine import Engine, window_bounds
from musicgen_core.generation.sampling import guide
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.decoder import Condition, delay
from musicgen_core.model.lora import load_merged, merged_checkpoint
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.seeds import stream_seed

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
    return exact_audiocraft_of(debug_model, debug_model.lm_path, tmp_path_factory.mktemp("audiocraft"))


def exact_audiocraft_of(model: BaseModel, file: Path, directory: Path) -> Any:
    """audiocraft's LMModel of a checkpoint of the model's shape, in fp64."""
    (directory / "t5-small").symlink_to(Path(model.text_encoder))
    loaders = import_audiocraft("audiocraft.models.loaders")
    with contextlib.chdir(directory):
        lm = loaders.load_lm_model(str(file)).double()
    lm.condition_provider.conditioners["description"].t5.double()
    return lm.eval()


def assert_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


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
    """audiocraft's codes of 200 frames for each prompt alone, [1, 4, 200]."""
    return {prompt: audiocraft_greedy(exact_audiocraft, prompt, 200) for prompt in [*PROMPTS, None, ""]}


@pytest.mark.parametrize(
    "prompts", [PROMPTS[:1], [None], [""], PROMPTS], ids=["one prompt", "null", "empty", "three lengths"]
)
def test_greedy_codes_are_audiocrafts_over_200_steps(
    exact_engine: Engine, expected: dict[str | None, Tensor], prompts: list[str | None]
) -> None:
    settings = SamplingSettings(duration=4, greedy=True)
    codes = exact_engine.generate(prompts, settings, streams=range(len(prompts)))
    assert_same(codes, [expected[prompt][0] for prompt in prompts])


def test_greedy_codes_follow_the_text(expected: dict[str | None, Tensor]) -> None:
    assert not torch.equal(expected[PROMPTS[0]], expected[PROMPTS[2]])
    assert not torch.equal(expected[PROMPTS[0]], expected[None])


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_the_shortest_samples_equal_audiocrafts(exact_engine: Engine, exact_audiocraft: Any, frames: int) -> None:
    settings = SamplingSettings(duration=frames / 50, greedy=True)
    codes = exact_engine.generate(PROMPTS[:1], settings, [0])
    assert_same(codes, audiocraft_greedy(exact_audiocraft, PROMPTS[0], frames))


def test_codes_have_a_frame_every_20_ms_and_no_special_ones(engine: Engine) -> None:
    codes = torch.stack(engine.generate(PROMPTS, SamplingSettings(duration=0.7), [1, 2, 3]))
    assert (codes.shape, codes.dtype) == ((3, 4, 35), torch.int64)
    assert 0 <= codes.min() and codes.max() < 2048


@pytest.mark.parametrize("settings", [SAMPLED, SamplingSettings(duration=0.5, top_p=0.9)], ids=["top-k", "top-p"])
def test_a_prompts_codes_do_not_depend_on_the_others_or_their_order(engine: Engine, settings: SamplingSettings) -> None:
    streams = [stream_seed(settings.seed, prompt) for prompt in PROMPTS]
    together = engine.generate(PROMPTS, settings, streams)
    backwards = engine.generate(PROMPTS[::-1], settings, streams[::-1])
    assert_same(backwards[::-1], together)
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


def test_a_longer_sample_starts_with_the_shorter_one(engine: Engine) -> None:
    shorter = engine.generate(PROMPTS[:1], SAMPLED, [5])
    longer = engine.generate(PROMPTS[:1], SamplingSettings(duration=1), [5])
    frames = shorter[0].shape[-1]
    for k in range(4):  # the last k frames come beside frames of codebook 0 that only the longer piece has
        assert torch.equal(longer[0][k, : frames - k], shorter[0][k, : frames - k])


def test_the_settings_guidance_stands_before_the_models(debug_model: BaseModel, engine: Engine) -> None:
    given = SAMPLED.model_copy(update={"guidance": 1.0})
    models_own = Engine(engine.lm, engine.text, 1.0)
    codes = engine.generate(PROMPTS[:1], given, [0])
    assert_same(codes, models_own.generate(PROMPTS[:1], SAMPLED, [0]))
    assert not torch.equal(codes[0], engine.generate(PROMPTS[:1], SAMPLED, [0])[0])


@torch.inference_mode()
def test_steps_with_the_cache_give_the_logits_of_the_whole_sequence(exact_engine: Engine) -> None:
    codes = torch.stack(exact_engine.generate(PROMPTS, SamplingSettings(duration=0.5, greedy=True), [0, 1, 2]))
    text = exact_engine.text.encode(PROMPTS)
    null = Condition(torch.zeros_like(text.states), torch.zeros_like(text.mask))
    sequence = delay(codes, MONO)[..., :-1]
    conditional, unconditional = exact_engine.lm(sequence, text), exact_engine.lm(sequence, null)
    chosen = (unconditional + GUIDANCE * (conditional - unconditional)).argmax(dim=-1)
    for k in range(4):
        assert torch.equal(chosen[:, k, k : k + codes.shape[-1]], codes[:, k])


def test_every_step_is_reported(engine: Engine) -> None:
    reports: list[tuple[int, int]] = []
    engine.generate(PROMPTS[:1], SamplingSettings(duration=0.1), [0], lambda *report: reports.append(report))
    assert reports == [(step, 8) for step in range(1, 9)]  # 5 frames, and 3 more columns for the delays


def test_cancelled_it_raises_before_the_next_step(engine: Engine) -> None:
    done: list[int] = []
    with pytest.raises(Cancelled, match="step 3 of 28"):
        engine.generate(PROMPTS[:1], SAMPLED, [0], lambda step, _: done.append(step), lambda: len(done) == 3)
    assert done == [1, 2, 3]


# Longer than a window, and going on from something


@pytest.fixture(scope="module")
def exact_musicgen(exact_audiocraft: Any, debug_model: BaseModel) -> Any:
    """audiocraft's own long generation, with windows of 2 s."""
    audiocraft = import_audiocraft("audiocraft.models")
    codec = import_audiocraft("audiocraft.models.loaders").load_compression_model(str(debug_model.codec_path))
    musicgen = audiocraft.MusicGen("debug", codec, exact_audiocraft, max_duration=30)
    musicgen.max_duration = 2.0  # not at once: its default stride is longer
    return musicgen


def audiocraft_long(musicgen: Any, prompt: str, seconds: float, overlap: float, known: Tensor | None = None) -> Tensor:
    musicgen.set_generation_params(
        use_sampling=False, duration=seconds, extend_stride=2.0 - overlap, cfg_coef=GUIDANCE, two_step_cfg=False
    )
    attributes, _ = musicgen._prepare_tokens_and_attributes([prompt], None)
    with torch.inference_mode():
        return musicgen._generate_tokens(attributes, known)


@pytest.fixture(scope="module")
def short_windows(exact_engine: Engine) -> Engine:
    return replace(exact_engine, window=100)


@pytest.mark.parametrize(("seconds", "overlap"), [(2.0, 1.0), (2.02, 1.0), (5.0, 1.5), (4.5, 0.5)])
def test_long_samples_equal_audiocrafts_window_by_window(
    short_windows: Engine, exact_musicgen: Any, seconds: float, overlap: float
) -> None:
    settings = SamplingSettings(duration=seconds, overlap=overlap, greedy=True)
    codes = short_windows.generate(PROMPTS[1:2], settings, [0])
    assert_same(codes, audiocraft_long(exact_musicgen, PROMPTS[1], seconds, overlap))


@pytest.mark.parametrize("given", [1, 2, 40, 99])
def test_a_continuation_of_codes_equals_audiocrafts(short_windows: Engine, exact_musicgen: Any, given: int) -> None:
    known = torch.randint(2048, (1, 4, given), generator=torch.Generator().manual_seed(given))
    settings = SamplingSettings(duration=2.0, greedy=True)
    codes = short_windows.generate(PROMPTS[:1], settings, [0], known=known)
    assert torch.equal(codes[0][:, :given], known[0])
    assert_same(codes, audiocraft_long(exact_musicgen, PROMPTS[0], 2.0, 1.0, known))


def test_samples_of_different_lengths_are_independent_of_their_batch(engine: Engine) -> None:
    windowed = replace(engine, window=50)
    settings, frames = SamplingSettings(overlap=0.4), [10, 130, 50, 51, 1]
    prompts, streams = [f"tune {i}" for i in frames], list(range(len(frames)))
    together = windowed.generate(prompts, settings, streams, frames=frames)
    assert [piece.shape[-1] for piece in together] == frames
    assert all(0 <= piece.min() and piece.max() < 2048 for piece in together)
    for i, piece in enumerate(together):
        alone = windowed.generate([prompts[i]], settings, [streams[i]], frames=[frames[i]])
        assert_same(alone, [piece])


@given(known=st.integers(0, 400), frames=st.integers(1, 1000), window=st.integers(2, 200), data=st.data())
def test_windows_are_contiguous_overlap_and_reach_the_end(
    known: int, frames: int, window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, window - 1))
    bounds = window_bounds(known, frames, window, overlap)
    assert [have for _, have, _ in bounds] == [known, *(end for _, _, end in bounds[:-1])][: len(bounds)]
    assert (bounds[-1][2] if bounds else known) >= frames
    for begin, have, end in bounds:
        assert 0 <= begin <= have < end <= min(frames, begin + window)
        assert begin == 0 or have - begin == overlap


@pytest.mark.parametrize("what", ["weight", "cache"])
def test_8_bits_are_refused_where_there_are_no_kernels_for_them(engine: Engine, what: str) -> None:
    of_8_bits: dict[str, Any] = {f"{what}_bits": 8}
    with pytest.raises(DeviceError, match=f"8-bit {what}s need an NVIDIA GPU") as refused:
        replace(engine, **of_8_bits).generate(PROMPTS[:1], SAMPLED, [0])
    assert f"--{what}-bits" in str(refused.value)


def test_8_bit_caches_apply_to_batches_only(engine: Engine) -> None:
    in_8_bits = replace(engine, cache_bits=8)
    assert [in_8_bits.cache_bits_for(pieces) for pieces in (1, 2, 32)] == [16, 8, 8]
    assert engine.cache_bits_for(32) == 16


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "with an adapter"])
def test_greedy_codes_are_audiocrafts_over_30_s(
    debug_model: BaseModel, strong_adapter: Adapter, tmp_path: Path, exact_engine: Engine, adapted: bool
) -> None:
    """audiocraft reads the merged model from a file, as a training leaves it; here the adapter is merged at load."""
    adapter = strong_adapter if adapted else None
    file = debug_model.lm_path
    if adapter is not None:
        file = tmp_path / "merged.pt"
        torch.save(merged_checkpoint(debug_model, adapter), file)
    lm = exact_audiocraft_of(debug_model, file, tmp_path)
    engine = replace(exact_engine, lm=load_merged(debug_model, adapter, "cpu", torch.float64))
    codes = engine.generate(PROMPTS[1:2], SamplingSettings(duration=30, greedy=True), [0])
    assert_same(codes, audiocraft_greedy(lm, PROMPTS[1], 1500))


def test_guided_logits_in_bf16_are_within_5_percent_of_those_in_fp32(debug_model: BaseModel) -> None:
    text = TextEncoder(debug_model.text_encoder).encode(["slow piano"])
    both = Condition(torch.cat([text.states, 0 * text.states]), torch.cat([text.mask, 0 * text.mask]).bool())
    codes = torch.randint(2048, (1, 4, 20), generator=torch.Generator().manual_seed(0))
    guided = []
    for dtype in (torch.float32, torch.bfloat16):
        lm = load_lm(debug_model, dtype=dtype)
        caches, mask = lm.new_cache(both, codes.shape[-1])
        steps = [lm.step(torch.cat([column, column]), caches, mask, at) for at, column in enumerate(codes.split(1, -1))]
        guided.append(guide(*torch.stack(steps).float().chunk(2, dim=1), GUIDANCE))
    exact, rounded = guided
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05

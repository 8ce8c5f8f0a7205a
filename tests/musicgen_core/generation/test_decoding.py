"""The decoding kernels compute the same as the model, which is tested against audiocraft."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musicgen_core.config import SamplingSettings
from musicgen_core.generation.engine import Engine
from musicgen_core.generation.melody import Melody
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm

pytest.importorskip("triton")
from musicgen_core.generation import decode_kernels
from musicgen_core.generation.decoding import tiles
from tests.melody_model import make_melody_model
from tests.musicgen_core.melodies import music
from tests.musicgen_core.offline_compile import SHARED_KIB, shared_bytes

MUCH_LONGER = "a text that is much longer than that of any other piece beside it " * 8

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def interpreted(script: str, *arguments: object) -> list[str]:
    """The words that a script prints in a process of its own, which interprets Triton."""
    launcher = Path(__file__).parent.parent / "interpreted.py"
    done = subprocess.run(
        [sys.executable, launcher, Path(__file__).with_name(script), *map(str, arguments)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("batch", "bits", "cache_bits", "given", "chroma_frames", "negatives", "distance"),
    [
        (1, 16, 16, 0, 0, 0, 1e-6),
        (1, 8, 16, 3, 0, 0, 0.02),
        (3, 16, 8, 2, 0, 0, 0.005),
        (3, 16, 16, 2, 0, 1, 1e-6),
        (1, 16, 16, 0, 7, 0, 1e-6),
        (3, 16, 16, 2, 7, 2, 1e-6),
        (3, 8, 8, 2, 7, 0, 0.02),
    ],
)
def test_kernels_give_the_logits_and_greedy_codes_of_the_model(
    batch: int, bits: int, cache_bits: int, given: int, chroma_frames: int, negatives: int, distance: float
) -> None:
    arguments = (batch, bits, cache_bits, given, chroma_frames, negatives)
    *_, error, same_codes = interpreted("interpreted_decoding.py", *arguments)
    assert float(error) < distance
    assert bits == 8 or same_codes == "True"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("splits", "scaled"), [(1, False), (1, True), (2, True), (4, False), (4, True), (8, True)])
def test_attention_is_that_of_pytorch_however_it_is_split(splits: int, scaled: bool) -> None:
    *_, error = interpreted("interpreted_attention.py", splits, scaled)
    assert float(error) < 1e-6


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("how", "channels"),
    [
        ({"greedy": True}, 1),
        ({"top_k": 50}, 1),
        ({"top_k": 50}, 2),
        ({"top_k": 0, "temperature": 0.7}, 1),
        ({"top_p": 0.8}, 1),
    ],
)
def test_the_kernel_samples_the_same_codes_from_the_same_draws(how: dict[str, float | bool], channels: int) -> None:
    settings = SamplingSettings.model_validate(how)
    found = interpreted("interpreted_sampling.py", settings.model_dump_json(), channels)
    different, codes, written_elsewhere = found[-3:]
    # The largest draw there is, one piece's, may fall among codes too rare to change a rounded sum.
    assert int(different) <= (4 if settings.top_k == 0 else 0)
    assert int(codes) > 150
    assert written_elsewhere == "False"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("rows", "parts"), [(2, 1), (32, 4), (64, 1), (64, 2)])
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_the_gemms_tiles_fit_the_shared_memory_of_each_gpu(capability: int, rows: int, parts: int) -> None:
    limit = 1024 * SHARED_KIB[capability]
    plain = {"PARTS": parts, "GELU": False}
    for kind in ({"SCALED": False, "scales": None}, {"SCALED": True}):
        scaled = bool(kind["SCALED"])
        block_m, block_n, block_k, stages, warps = tiles(rows, 2048, parts, scaled, limit)
        shape = {"N": 2048, "K": 2048, "BM": block_m, "BN": block_n, "BK": block_k, "STAGES": stages}
        types = {"rows": "i32", "w": "*i8" if scaled else "*bf16", "scales": "*fp32"}
        assert shared_bytes(decode_kernels.linear_kernel, capability, types, shape | plain | kind, warps) <= limit


@needs_gpu
def test_the_graph_is_deterministic_and_depends_on_the_seed(debug_model: BaseModel) -> None:
    text = TextEncoder(debug_model.text_encoder, "cuda")
    engine = Engine(load_lm(debug_model, "cuda", torch.bfloat16), text, 3.0)
    settings = SamplingSettings(duration=2.0, greedy=True)
    first, again = (engine.generate(["slow jazz", None], settings, [1, 2]) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert engine._decoding is not None
    sampled = SamplingSettings(duration=2.0)
    a, b = (engine.generate(["slow jazz"], sampled, [seed])[0] for seed in (1, 2))
    assert not torch.equal(a, b)


@needs_gpu
@pytest.mark.parametrize("cache_bits", [16, 8])
@pytest.mark.parametrize("takes_melody", [False, True])
def test_a_sample_is_independent_of_its_batch_on_a_gpu(
    debug_model: BaseModel, tmp_path: Path, takes_melody: bool, cache_bits: int
) -> None:
    """Nor on the others' texts, melodies, seeds, durations or beginnings; over more than one window."""
    model = make_melody_model(tmp_path / "melody", debug_model) if takes_melody else debug_model
    text = TextEncoder(model.text_encoder, "cuda")
    engine = Engine(load_lm(model, "cuda", torch.bfloat16), text, 3.0, cache_bits=cache_bits, window=100)
    settings, known = SamplingSettings(overlap=1.0), torch.randint(2048, (8, 4, 20))
    tunes = [Melody(music(seconds=10, seed=seed), path="", sha256=str(seed)) for seed in range(2)]
    batches = []
    for others, frames, tune in (("a", 30, None), (MUCH_LONGER, 320, tunes[1])):
        known[1:] = torch.randint(2048, (7, 4, 20))
        prompts, ends, streams = ["slow jazz", *7 * [others]], [230, *7 * [frames]], [0, *range(frames, frames + 7)]
        melodies = [tunes[0], *7 * [tune]]
        batches.append(engine.generate(prompts, settings, streams, frames=ends, known=known, melodies=melodies))
    assert torch.equal(batches[0][0], batches[1][0])

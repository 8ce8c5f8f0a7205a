"""The kernel of a single piece computes what the kernels of many do, and those are tested against the model."""

from __future__ import annotations

import pytest
import torch

from musicgen_core.model.decoder import DecoderConfig, MusicgenLM, TextCondition

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings")
from musicgen_core.generation.decoding import Decoding
from musicgen_core.generation.one_piece import compiled, sizes

needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0), reason="needs a GPU of 9.0 or newer"
)
HIDDEN = {"small": 1024, "medium": 1536, "large": 2048}


@pytest.mark.slow
@pytest.mark.parametrize("weight_bytes", [1, 2])
@pytest.mark.parametrize("model", HIDDEN)
@pytest.mark.parametrize("architecture", ["sm_90", "sm_100"])
def test_the_kernel_compiles_for_each_model_without_its_gpu(architecture: str, model: str, weight_bytes: int) -> None:
    binary = compiled(architecture, sizes(HIDDEN[model], 8192, weight_bytes, stages=6))
    assert binary.startswith(b"\x7fELF")
    assert b"one_piece" in binary


@pytest.mark.slow
def test_what_the_compiler_says_of_an_error_is_told() -> None:
    with pytest.raises(RuntimeError, match="STAGES"):
        compiled("sm_90", {"D": 1024, "FFN": 4096, "WIDTH": 8192, "BYTES": 2})


@needs_hopper
@pytest.mark.parametrize(("dim", "words"), [(512, 1), (1024, 3), (1536, 40), (2048, 300)])
@pytest.mark.parametrize("bits", [16, 8])
@torch.inference_mode()
def test_one_piece_alone_gets_the_logits_that_it_gets_beside_others(dim: int, words: int, bits: int) -> None:
    torch.manual_seed(0)
    config = DecoderConfig(dim=dim, layers=3, heads=dim // 64, ffn_dim=4 * dim, text_dim=96)
    with torch.device("cuda"):
        lm = MusicgenLM(config).to(torch.bfloat16).eval().requires_grad_(False)
        states = torch.randn(1, words, 96, dtype=torch.bfloat16)
        codes = torch.randint(2048, (1, 4, 901))
    decoding = Decoding(lm, 900, bits)
    assert decoding._one_piece is not None

    def conditions(pieces: int) -> TextCondition:
        both = torch.cat([states.expand(pieces, -1, -1), torch.zeros_like(states.expand(pieces, -1, -1))])
        mask = torch.ones(pieces, words, dtype=torch.bool, device="cuda")
        return TextCondition(both, torch.cat([mask, ~mask]))

    alone = decoding.begin(conditions(1), codes.clone(), given=5)
    beside = decoding.begin(conditions(2), codes.expand(2, -1, -1).clone(), given=5)
    for position in range(5, 900):
        found, expected = decoding.step(alone), decoding.step(beside)[[0, 2]]
        assert (found - expected).norm() < 0.01 * expected.norm(), position
        alone.position += 1
        beside.position += 1

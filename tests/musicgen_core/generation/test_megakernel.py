"""The megakernel computes the same as the decoding kernels, which are tested against the model."""

from __future__ import annotations

import pytest
import torch

from musicgen_core.model.decoder import Condition, DecoderConfig, MusicgenLM

pytest.importorskip("triton")
pytest.importorskip("cuda.bindings")
from musicgen_core.generation import megakernel as module
from musicgen_core.generation.decoding import Decoding
from musicgen_core.generation.megakernel import CudaError, compiled, megakernel, sizes

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
    assert b"megakernel" in binary


@pytest.mark.slow
def test_an_error_shows_the_message_of_the_compiler() -> None:
    without = {name: size for name, size in sizes(1024, 8192, 2, stages=6).items() if name != "STAGES"}
    with pytest.raises(CudaError, match="STAGES"):
        compiled("sm_90", without)


def test_without_the_kernel_a_warning_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise CudaError("CUDA answered NVRTC_ERROR_COMPILATION")

    config, norms = DecoderConfig(1024, 2, 16, 4096, 96), torch.zeros(7, 2, 1024, dtype=torch.bfloat16)
    assert megakernel(config, [], [], norms) is None  # weights on a CPU: not attempted
    assert not caplog.records
    monkeypatch.setattr(module, "_fits", lambda *_: True)
    monkeypatch.setattr(module, "Megakernel", refuse)
    assert megakernel(config, [], [], norms) is None
    assert "NVRTC_ERROR_COMPILATION" in caplog.text


@needs_hopper
@pytest.mark.parametrize(
    ("dim", "words", "given", "negative"), [(512, 1, 0, 0), (1024, 3, 0, 2), (1536, 40, 5, 0), (2048, 300, 5, 11)]
)
@pytest.mark.parametrize("bits", [16, 8])
@torch.inference_mode()
def test_a_sample_alone_gets_the_logits_that_it_gets_in_a_batch(
    dim: int, words: int, given: int, negative: int, bits: int
) -> None:
    """Also with a negative prompt, of so many tokens, in place of the null condition."""
    torch.manual_seed(0)
    config = DecoderConfig(dim=dim, layers=3, heads=dim // 64, ffn_dim=4 * dim, text_dim=96)
    with torch.device("cuda"):
        lm = MusicgenLM(config).to(torch.bfloat16).eval().requires_grad_(False)
        states, others = torch.randn(2, 1, words, 96, dtype=torch.bfloat16)
        mask = torch.stack([torch.arange(words) < count for count in (words, negative)])
        codes = torch.randint(2048, (1, 4, 901))
    decoding = Decoding(lm, 900, bits)
    assert decoding._megakernel is not None

    def conditions(samples: int) -> Condition:
        both = torch.cat([states, others * mask[1, None, :, None]]).repeat_interleave(samples, dim=0)
        return Condition(both, mask.repeat_interleave(samples, dim=0))

    alone = decoding.begin(conditions(1), codes.clone(), given=given)
    batched = decoding.begin(conditions(2), codes.expand(2, -1, -1).clone(), given=given)
    for position in range(given, 900):
        found, expected = decoding.step(alone), decoding.step(batched)[[0, 2]]
        assert (found - expected).norm() < 0.01 * expected.norm(), position
        alone.position += 1
        batched.position += 1

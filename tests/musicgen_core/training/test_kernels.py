"""The fused blocks compute the same as the plain ones, which test_model tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from musicgen_core.model.weights import BaseModel
from musicgen_core.training.compute import fp8

pytest.importorskip("triton")
from musicgen_core.training.compute import kernels
from musicgen_core.training.compute.fused_blocks import (
    cross_attention_fits,
    fused_cross_attention,
    fused_cross_attention_grad,
)
from tests.musicgen_core.offline_compile import SHARED_KIB, shared_bytes

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def errors(ranks: int | str, checkpointing: bool, precision: str, chroma_frames: int = 0) -> list[float]:
    """Relative errors of a step's losses and gradients, the losses after an update, and losses without dropout.

    In a process of its own, which interprets Triton.
    """
    launcher = Path(__file__).parent.parent / "interpreted.py"
    script = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, launcher, script, str(ranks), str(checkpointing), precision, str(chroma_frames)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(error) for error in done.stdout.split()[-4:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "checkpointing", "chroma_frames"),
    [
        (8, False, 0),
        (24, True, 0),
        ("0=4,1=12", False, 0),
        ("0=8", False, 0),
        ("1=8", True, 0),
        (8, False, 16),
    ],
)
def test_fused_kernels_give_losses_and_gradients_of_plain_operations(
    debug_model: BaseModel, ranks: int | str, checkpointing: bool, chroma_frames: int
) -> None:
    losses, gradients, after, without_dropout = errors(ranks, checkpointing, "fp32", chroma_frames)
    assert max(losses, gradients) < 3e-6
    assert max(after, without_dropout) < 1e-4  # Adam amplifies rounding where a gradient is near 0


@pytest.mark.slow
def test_fp8_stays_near_the_plain_operations(debug_model: BaseModel) -> None:
    losses, gradients, after, without_dropout = errors(8, False, "fp8")
    assert max(losses, after, without_dropout) < 0.01
    assert gradients < 0.15


@needs_gpu
def test_quantizing_gives_the_same_on_a_gpu_and_a_cpu() -> None:
    x = torch.randn(100, 3000, dtype=torch.bfloat16)
    (values, scales), (expected, expected_scales) = fp8.quantize_rows(x.cuda()), fp8.quantize_rows(x)
    torch.testing.assert_close(scales.cpu(), expected_scales)
    differing = values.cpu().float() != expected.float()  # where a quotient lies between two values of e4m3
    assert differing.float().mean() < 1e-3
    torch.testing.assert_close(values.cpu().float(), expected.float(), rtol=0.126, atol=2**-9)  # the next one


@pytest.mark.slow
@pytest.mark.parametrize("capability", SHARED_KIB)
def test_cross_attention_uses_the_kernels_only_where_they_fit(capability: int) -> None:
    limit = 1024 * SHARED_KIB[capability]
    admitted = [tokens for tokens in (16, 32, 64, 128, 256, 512) if cross_attention_fits(tokens, limit)]
    assert 64 in admitted and 512 not in admitted
    types = {"length": "i32", "text_length": "i32", "scale": "fp32", "attend": "*i1"}
    constants = {"width": 2048, "HEADS": 32, "HEAD": 64, "M": 64, "L": admitted[-1]}
    for kernel in (kernels.cross_attention_kernel, kernels.cross_attention_grad_kernel):
        assert shared_bytes(kernel, capability, types, constants, warps=4) <= limit


def test_a_text_too_long_for_the_kernels_uses_plain_operations() -> None:
    batch, heads, rows, tokens, head = 2, 2, 5, 600, 8
    q = torch.randn(batch * rows, heads * head, dtype=torch.float64, requires_grad=True)
    kv = torch.randn(batch * tokens, 2 * heads * head, dtype=torch.float64, requires_grad=True)
    attend = (torch.arange(tokens) < torch.tensor([[600], [9]]))[:, None, None]
    expected = []
    for clip in range(batch):
        own, text = q[clip * rows :][:rows], kv[clip * tokens :][: [600, 9][clip]]
        parts = (one.unflatten(1, (-1, heads, head)).permute(1, 2, 0, 3) for one in (own, text))
        (queries,), (keys, values) = parts
        expected.append(F.scaled_dot_product_attention(queries, keys, values).transpose(0, 1).flatten(1))
    whole, grad = torch.cat(expected), torch.randn(batch * rows, heads * head, dtype=torch.float64)
    torch.testing.assert_close(fused_cross_attention(q.detach(), kv.detach(), attend, heads), whole.detach())
    found = fused_cross_attention_grad(q.detach(), kv.detach(), attend, heads, grad)
    for one, other in zip(found, torch.autograd.grad(whole, (q, kv), grad), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)

"""The fused blocks compute what the plain ones do, and what the plain ones compute is tested in test_model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from musicgen_core.model.weights import BaseModel
from musicgen_core.training import fp8

pytest.importorskip("triton")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def errors(rank: int, checkpointing: bool, precision: str) -> list[float]:
    """Relative errors of a step's losses and gradients, the losses after an update, and losses without dropout.

    In a process of its own, which interprets Triton.
    """
    launcher = Path(__file__).parent.parent / "interpreted.py"
    script = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run(
        [sys.executable, launcher, script, str(rank), str(checkpointing), precision],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(error) for error in done.stdout.split()[-4:]]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "checkpointing"), [(8, False), (24, True)])
def test_fused_kernels_compute_losses_and_gradients_of_the_plain_operations(
    debug_model: BaseModel, rank: int, checkpointing: bool
) -> None:
    losses, gradients, after, without_dropout = errors(rank, checkpointing, "fp32")
    assert max(losses, gradients) < 3e-6
    assert max(after, without_dropout) < 1e-4  # an update makes much of little where a gradient is near 0


@pytest.mark.slow
def test_fp8_stays_near_the_plain_operations(debug_model: BaseModel) -> None:
    losses, gradients, after, without_dropout = errors(8, False, "fp8")
    assert max(losses, after, without_dropout) < 0.01
    assert gradients < 0.15


@needs_gpu
def test_quantizing_on_a_gpu_is_quantizing_on_the_cpu() -> None:
    x = torch.randn(100, 3000, dtype=torch.bfloat16)
    (values, scales), (expected, expected_scales) = fp8.quantize(x.cuda()), fp8.quantize(x)
    torch.testing.assert_close(scales.cpu(), expected_scales)
    differing = values.cpu().float() != expected.float()  # where a quotient lies between two values of e4m3
    assert differing.float().mean() < 1e-3
    torch.testing.assert_close(values.cpu().float(), expected.float(), rtol=0.126, atol=2**-9)  # the next one

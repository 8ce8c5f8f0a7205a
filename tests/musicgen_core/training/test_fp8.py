"""FP8 GEMMs lose no more than their format implies."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.training.compute.fp8 import multiply, quantize_rows


@settings(deadline=None, max_examples=50)
@given(st.floats(1e-6, 1e6), st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**31))
def test_quantized_rows_are_off_by_a_sixteenth_at_most(size: float, rows: int, columns: int, seed: int) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    values, scales = quantize_rows(x)
    error = (values.float() * scales - x).abs()
    # 3 bits behind the leading one; below 2⁻⁶ of the scale numbers are 2⁻⁹ of it apart
    assert (error <= (x.abs() / 16).maximum(scales * 2**-10) * 1.001).all()


def test_a_row_of_zeros_stays_zero() -> None:
    values, scales = quantize_rows(torch.zeros(2, 5))
    assert not (values.float() * scales).any()


def test_rows_are_scaled_on_their_own() -> None:
    x = torch.randn(2, 64) * torch.tensor([[1.0], [1e-5]])
    values, scales = quantize_rows(x)
    assert ((values.float() * scales - x).norm(dim=1) / x.norm(dim=1) < 0.05).all()


def test_fp8_gemms_are_near_those_in_full_precision() -> None:
    x, weight = torch.randn(50, 256), torch.randn(96, 256)
    product = multiply(quantize_rows(x), quantize_rows(weight), torch.float32)
    exact = x @ weight.T
    assert (product - exact).norm() / exact.norm() < 0.05

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musicgen_core.codes import CodeShape
from musicgen_core.model.decoder import teacher_forcing
from musicgen_core.training.compute.losses import clip_losses

SPECIAL = 11
SHAPE = CodeShape(cardinality=SPECIAL)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """codes [B, 4, T], true lengths [B] and fp64 logits [B, 4, T, 11]; clips of one frame are among them."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    frames = draw(st.lists(st.integers(1, length), min_size=batch, max_size=batch))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    codes = torch.randint(SPECIAL, (batch, 4, length), generator=generator)
    logits = 3 * torch.randn(batch, 4, length, SPECIAL, generator=generator, dtype=torch.float64)
    return codes, torch.tensor(frames), logits


def losses_of(codes: Tensor, frames: Tensor, logits: Tensor) -> Tensor:
    _, targets, valid = teacher_forcing(codes, frames, SHAPE)
    return clip_losses(logits, targets, valid)


@given(predictions())
def test_it_equals_a_plain_loop_over_clips_codebooks_and_frames(case: tuple[Tensor, Tensor, Tensor]) -> None:
    codes, frames, logits = case
    losses = losses_of(*case)
    for b in range(codes.shape[0]):
        for k in range(4):
            terms = [  # frame t of codebook k is predicted in column t + k, and columns past the clip's end don't count
                -math.log(logits[b, k, t + k].softmax(0)[codes[b, k, t]].item()) for t in range(int(frames[b]) - k)
            ]
            expected = sum(terms) / len(terms) if terms else 0.0
            assert math.isclose(losses[b, k].item(), expected, abs_tol=1e-9)


@given(predictions(), st.integers(1, 3))
def test_it_does_not_depend_on_how_a_batch_is_split(case: tuple[Tensor, Tensor, Tensor], micro: int) -> None:
    parts = [losses_of(*part) for part in zip(*(tensor.split(micro) for tensor in case), strict=True)]
    torch.testing.assert_close(torch.cat(parts), losses_of(*case), atol=1e-12, rtol=0)


@given(predictions(), st.integers(1, 5), st.integers(0, SPECIAL - 1))
def test_padding_does_not_change_it(case: tuple[Tensor, Tensor, Tensor], more: int, filler: int) -> None:
    codes, frames, logits = case
    padded = torch.nn.functional.pad(codes, (0, more), value=filler)
    wild = torch.nn.functional.pad(logits, (0, 0, 0, more), value=1e3)
    torch.testing.assert_close(losses_of(padded, frames, wild), losses_of(*case), atol=1e-12, rtol=0)


@given(predictions())
def test_only_valid_positions_get_gradients(case: tuple[Tensor, Tensor, Tensor]) -> None:
    codes, frames, logits = case
    _, targets, valid = teacher_forcing(codes, frames, SHAPE)
    logits.requires_grad_()
    clip_losses(logits, targets, valid).sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.abs().sum(dim=-1) > 0, valid)


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits = torch.randn(1, 4, 6, SPECIAL, generator=torch.Generator().manual_seed(0)).bfloat16()
    codes, frames = torch.zeros(1, 4, 6, dtype=torch.int64), torch.tensor([6])
    losses = losses_of(codes, frames, logits)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), losses_of(codes, frames, logits.double()), atol=1e-5, rtol=0)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import MONO, CodeShape
from musicgen_core.model.decoder import delay, teacher_forcing, undelay

SPECIAL = MONO.special


@st.composite
def codes_and_shapes(draw: st.DrawFn) -> tuple[Tensor, CodeShape]:
    """codes [B, K, T] of one or two channels: clips shorter than the pattern's longest delay are among them."""
    channels, each = draw(st.integers(1, 2)), draw(st.integers(1, 5))
    delays = tuple(k for k in range(each) for _ in range(channels))
    size = (draw(st.integers(1, 3)), len(delays), draw(st.integers(1, 12)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(SPECIAL, size, generator=generator), CodeShape(channels=channels, delays=delays)


Case = tuple[Tensor, CodeShape]


def true_lengths(codes: Tensor) -> Tensor:
    return torch.full((codes.shape[0],), codes.shape[-1])


@pytest.fixture(scope="module")
def pattern_of() -> Callable[[Case], Any]:
    provider = import_audiocraft("audiocraft.modules.codebooks_patterns").DelayedPatternProvider
    return lambda case: provider(case[1].codebooks, delays=list(case[1].delays)).get_pattern(case[0].shape[-1])


@given(codes_and_shapes())
def test_undelaying_gives_back_what_was_delayed(case: Case) -> None:
    codes, shape = case
    assert torch.equal(undelay(delay(codes, shape), shape, codes.shape[-1]), codes)


@given(codes_and_shapes())
def test_each_code_is_delayed_once_and_the_rest_is_special(case: Case) -> None:
    codes, shape = case
    sequence = delay(codes, shape)
    batch, codebooks, _ = codes.shape
    assert (sequence == SPECIAL).sum() == batch * codebooks * (max(shape.delays) + 1)
    assert torch.equal(sequence[sequence != SPECIAL].sort().values, codes.flatten().sort().values)


@given(case=codes_and_shapes())
def test_the_delayed_sequence_is_audiocrafts(pattern_of: Callable[[Case], Any], case: Case) -> None:
    expected, _, _ = pattern_of(case).build_pattern_sequence(case[0], SPECIAL)
    assert torch.equal(delay(*case), expected)


@given(case=codes_and_shapes())
def test_teacher_forcing_is_audiocrafts(pattern_of: Callable[[Case], Any], case: Case) -> None:
    (codes, shape), pattern = case, pattern_of(case)
    inputs, targets, valid = teacher_forcing(codes, true_lengths(codes), shape)

    sequence, _, _ = pattern.build_pattern_sequence(codes, SPECIAL, keep_only_valid_steps=True)
    assert torch.equal(inputs, sequence[..., :-1])  # the last column predicts nothing
    # audiocraft brings predictions back from steps to frames: our targets must come back as the codes themselves.
    stacked = torch.stack([targets, valid], dim=1).double()
    reverted, _, mask = pattern.revert_pattern_logits(stacked, float("nan"), keep_only_valid_steps=True)
    assert torch.equal(reverted[:, 0, mask], codes[:, mask].double())
    assert reverted[:, 1, mask].eq(1).all()
    assert torch.equal(valid.sum(-1), mask.sum(-1).expand_as(valid[..., 0]))


@given(codes_and_shapes())
def test_a_codebook_has_as_many_positions_fewer_to_learn_from_as_it_is_delayed(case: Case) -> None:
    codes, shape = case
    _, _, valid = teacher_forcing(codes, true_lengths(codes), shape)
    fewer = codes.shape[-1] - torch.tensor(shape.delays)
    assert torch.equal(valid.sum(-1), fewer.clamp(min=0).expand_as(valid[..., 0]))


@given(case=codes_and_shapes(), data=st.data())
def test_a_shorter_clip_in_a_padded_batch_is_treated_as_if_alone(case: Case, data: st.DataObject) -> None:
    codes, shape = case
    lengths = data.draw(st.lists(st.integers(1, codes.shape[-1]), min_size=len(codes), max_size=len(codes)))
    inputs, targets, valid = teacher_forcing(codes, torch.tensor(lengths), shape)
    for i, frames in enumerate(lengths):
        alone = codes[i : i + 1, :, :frames]
        own_inputs, own_targets, own_valid = teacher_forcing(alone, torch.tensor([frames]), shape)
        assert torch.equal(inputs[i, :, :frames], own_inputs[0])
        assert torch.equal(valid[i, :, :frames], own_valid[0])
        assert torch.equal(targets[i, :, :frames][own_valid[0]], own_targets[own_valid])
        assert not valid[i, :, frames:].any()

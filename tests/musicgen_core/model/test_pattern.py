from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model.decoder import delay, teacher_forcing, undelay

SPECIAL = 2048


@st.composite
def codes_of_any_shape(draw: st.DrawFn) -> Tensor:
    """codes [B, K, T]: clips shorter than the pattern's longest delay are among them."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 12)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(SPECIAL, shape, generator=generator)


def true_lengths(codes: Tensor) -> Tensor:
    return torch.full((codes.shape[0],), codes.shape[-1])


@pytest.fixture(scope="module")
def patterns() -> Any:
    return import_audiocraft("audiocraft.modules.codebooks_patterns")


@given(codes_of_any_shape())
def test_undelaying_gives_back_what_was_delayed(codes: Tensor) -> None:
    assert torch.equal(undelay(delay(codes, SPECIAL), codes.shape[-1]), codes)


@given(codes_of_any_shape())
def test_each_code_is_delayed_once_and_the_rest_is_special(codes: Tensor) -> None:
    sequence = delay(codes, SPECIAL)
    batch, codebooks, _ = codes.shape
    assert (sequence == SPECIAL).sum() == batch * codebooks * codebooks
    assert torch.equal(sequence[sequence != SPECIAL].sort().values, codes.flatten().sort().values)


@given(codes=codes_of_any_shape())
def test_the_delayed_sequence_is_audiocrafts(patterns: Any, codes: Tensor) -> None:
    pattern = patterns.DelayedPatternProvider(codes.shape[1]).get_pattern(codes.shape[-1])
    expected, _, _ = pattern.build_pattern_sequence(codes, SPECIAL)
    assert torch.equal(delay(codes, SPECIAL), expected)


@given(codes=codes_of_any_shape())
def test_teacher_forcing_is_audiocrafts(patterns: Any, codes: Tensor) -> None:
    pattern = patterns.DelayedPatternProvider(codes.shape[1]).get_pattern(codes.shape[-1])
    inputs, targets, valid = teacher_forcing(codes, true_lengths(codes), SPECIAL)

    sequence, _, _ = pattern.build_pattern_sequence(codes, SPECIAL, keep_only_valid_steps=True)
    assert torch.equal(inputs, sequence[..., :-1])  # the last column predicts nothing
    # audiocraft brings predictions back from steps to frames: our targets must come back as the codes themselves.
    stacked = torch.stack([targets, valid], dim=1).double()
    reverted, _, mask = pattern.revert_pattern_logits(stacked, float("nan"), keep_only_valid_steps=True)
    assert torch.equal(reverted[:, 0, mask], codes[:, mask].double())
    assert reverted[:, 1, mask].eq(1).all()
    assert torch.equal(valid.sum(-1), mask.sum(-1).expand_as(valid[..., 0]))


@given(codes_of_any_shape())
def test_codebook_k_has_k_positions_fewer_to_learn_from(codes: Tensor) -> None:
    _, _, valid = teacher_forcing(codes, true_lengths(codes), SPECIAL)
    fewer = codes.shape[-1] - torch.arange(codes.shape[1])
    assert torch.equal(valid.sum(-1), fewer.clamp(min=0).expand_as(valid[..., 0]))


@given(codes=codes_of_any_shape(), data=st.data())
def test_a_shorter_clip_in_a_padded_batch_is_treated_as_if_alone(codes: Tensor, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, codes.shape[-1]), min_size=len(codes), max_size=len(codes)))
    inputs, targets, valid = teacher_forcing(codes, torch.tensor(lengths), SPECIAL)
    for i, frames in enumerate(lengths):
        alone = codes[i : i + 1, :, :frames]
        own_inputs, own_targets, own_valid = teacher_forcing(alone, torch.tensor([frames]), SPECIAL)
        assert torch.equal(inputs[i, :, :frames], own_inputs[0])
        assert torch.equal(valid[i, :, :frames], own_valid[0])
        assert torch.equal(targets[i, :, :frames][own_valid[0]], own_targets[own_valid])
        assert not valid[i, :, frames:].any()

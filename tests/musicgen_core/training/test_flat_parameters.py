"""Flat parameters train exactly as the single ones would."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from musicgen_core.training.compute.parameters import FlatParameters

SHAPES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=1, max_size=6)


def flat_and_single(shapes: list[tuple[int, int]], order: list[int]) -> tuple[FlatParameters, list[Any], list[Any]]:
    """Flat parameters, the parameters that they are made of, and equal ones of their own."""
    torch.manual_seed(0)
    single = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    parts = [nn.Parameter(parameter.detach().clone()) for parameter in single]
    return FlatParameters(parts, [parts[i] for i in order]), parts, single


@given(shapes=SHAPES, data=st.data())
@settings(max_examples=30, deadline=None)
def test_updates_and_saved_states_are_those_of_single_parameters(shapes: list[tuple[int, int]], data: Any) -> None:
    flat, parts, single = flat_and_single(shapes, data.draw(st.permutations(range(len(shapes)))))
    whole, each = torch.optim.AdamW([flat.whole], fused=True), torch.optim.AdamW(single, fused=True)
    for _ in range(3):
        for part, one in zip(parts, single, strict=True):
            one.grad = torch.randn_like(one)
            part.grad.copy_(one.grad)
        whole.step()
        each.step()
    for part, one in zip(parts, single, strict=True):
        torch.testing.assert_close(part, one)
    split = flat.split_state(whole.state_dict()["state"])
    expected = each.state_dict()["state"]
    assert split.keys() == expected.keys()
    for i, state in expected.items():
        for name, value in state.items():
            torch.testing.assert_close(split[i][name], value)
    (joined,) = flat.join_state(split).values()
    assert all(torch.equal(joined[name], value) for name, value in whole.state_dict()["state"][0].items())


def test_backward_passes_add_up_in_the_flat_gradient() -> None:
    flat, (a, b), _ = flat_and_single([(2, 3), (1, 4)], [1, 0])
    for _ in range(2):
        (a.sum() + 2 * b.sum()).backward()
    assert flat.gradient.tolist() == [4.0] * 4 + [2.0] * 6
    assert flat.whole.grad is flat.gradient


def test_nothing_is_saved_of_an_optimizer_that_did_no_step() -> None:
    flat, _, _ = flat_and_single([(2, 3)], [0])
    state = torch.optim.AdamW([flat.whole]).state_dict()["state"]
    assert flat.split_state(state) == flat.join_state({}) == {}

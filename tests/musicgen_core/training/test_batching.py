from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError
from musicgen_core.training import batching
from musicgen_core.training.batching import BatchSize, DataOrder, resolve_batch_size

CPU = torch.device("cpu")

# Batch size


@pytest.mark.parametrize(
    ("given_settings", "expected"),
    [
        ({}, (2, 8)),
        ({"batch_size": "auto"}, (2, 8)),
        ({"batch_size": 4}, (4, 4)),
        ({"batch_size": 16}, (16, 1)),
        ({"gradient_accumulation_steps": 8}, (2, 8)),
        ({"gradient_accumulation_steps": 1}, (16, 1)),
        ({"batch_size": "auto", "gradient_accumulation_steps": 4}, (4, 4)),
        ({"batch_size": 3, "gradient_accumulation_steps": 5}, (3, 5)),
        ({"batch_size": 32, "gradient_accumulation_steps": 1}, (32, 1)),
    ],
)
def test_a_step_sees_16_clips_unless_both_numbers_are_given(
    given_settings: dict[str, int], expected: tuple[int, int]
) -> None:
    size = resolve_batch_size(TrainSettings(**given_settings), CPU)
    assert (size.micro, size.accumulation) == expected
    assert size.effective == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("memory_gib", "expected"), [(80, (4, 4)), (141, (4, 4)), (40, (2, 8)), (32, (2, 8)), (15, (1, 16))]
)
def test_the_micro_batch_of_a_gpu_follows_its_memory(
    monkeypatch: pytest.MonkeyPatch, memory_gib: float, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(batching, "memory_gib", lambda device: memory_gib)  # there may be no GPU here
    assert resolve_batch_size(TrainSettings(), torch.device("cuda")) == BatchSize(*expected)


@pytest.mark.parametrize("name", ["batch_size", "gradient_accumulation_steps"])
@pytest.mark.parametrize("value", [3, 5, 17, 32, 160])
def test_a_number_that_does_not_divide_16_is_named_with_the_way_out(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"{name} {value} doesn't divide the 16") as refused:
        resolve_batch_size(TrainSettings(**{name: value}), CPU)
    assert "both batch_size and gradient_accumulation_steps" in refused.value.next_step


# Order

orders = st.builds(
    DataOrder,
    clips=st.integers(1, 70),
    per_step=st.integers(1, 20),
    epochs=st.integers(1, 4),
    max_steps=st.none(),
    seed=st.integers(0, 2**32 - 1),
)


@settings(deadline=None)
@given(orders)
def test_each_epoch_sees_every_clip_once(order: DataOrder) -> None:
    seen: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(1, order.epochs + 1)}
    for step in range(1, order.total_steps + 1):
        seen[order.epoch_of(step)].update(order.positions(step))
    assert all(counts == Counter(range(order.clips)) for counts in seen.values())


@settings(deadline=None)
@given(orders)
def test_every_step_is_full_but_the_last_of_an_epoch(order: DataOrder) -> None:
    for step in range(1, order.total_steps + 1):
        size = len(order.positions(step))
        if order.ends_epoch(step):
            assert size == (order.clips % order.per_step or order.per_step)
        else:
            assert size == order.per_step


@settings(deadline=None)
@given(orders)
def test_epochs_follow_each_other_and_each_ends_once(order: DataOrder) -> None:
    steps = range(1, order.total_steps + 1)
    assert [order.epoch_of(step) for step in steps if order.ends_epoch(step)] == list(range(1, order.epochs + 1))
    assert [order.epoch_of(step) for step in steps] == sorted(order.epoch_of(step) for step in steps)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(number: int, seed: int = 0) -> tuple[int, ...]:
        return tuple(DataOrder(50, 50, 9, None, seed).positions(number))

    assert len({epoch(1), epoch(2), epoch(3), epoch(1, seed=1), epoch(2, seed=1)}) == 5
    assert epoch(2) == epoch(2)


@settings(deadline=None)
@given(orders, st.integers(1, 300))
def test_max_steps_only_ends_it_earlier(order: DataOrder, max_steps: int) -> None:
    cut = DataOrder(order.clips, order.per_step, order.epochs, max_steps, order.seed)
    assert cut.total_steps == min(max_steps, order.total_steps)
    for step in range(1, cut.total_steps + 1):
        assert cut.positions(step) == order.positions(step)
        assert cut.ends_epoch(step) == (order.ends_epoch(step) or step == max_steps)


@settings(deadline=None)
@given(orders, st.integers(1, 20))
def test_the_order_of_the_clips_does_not_depend_on_how_many_a_step_sees(order: DataOrder, per_step: int) -> None:
    other = DataOrder(order.clips, per_step, order.epochs, None, order.seed)

    def clips_of(order: DataOrder) -> list[int]:
        return [position for step in range(1, order.total_steps + 1) for position in order.positions(step)]

    assert clips_of(order) == clips_of(other)

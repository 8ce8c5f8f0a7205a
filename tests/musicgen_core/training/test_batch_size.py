from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.config import TrainSettings
from musicgen_core.errors import ConfigError, DeviceError
from musicgen_core.training import batches
from musicgen_core.training.batches import BatchSize, DataOrder, resolve_batch_size, resolve_execution
from musicgen_core.training.compute.execution import Execution

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
    ("memory_gib", "expected"), [(80, (4, 4)), (141, (16, 1)), (40, (2, 8)), (32, (2, 8)), (24, (1, 16)), (15, (1, 16))]
)
def test_the_micro_batch_of_a_gpu_follows_its_memory(
    monkeypatch: pytest.MonkeyPatch, memory_gib: float, expected: tuple[int, int]
) -> None:
    monkeypatch.setattr(batches, "memory_gib", lambda device: memory_gib)  # there may be no GPU here
    assert resolve_batch_size(TrainSettings(), torch.device("cuda")) == BatchSize(*expected)


@pytest.mark.parametrize(
    ("memory_gib", "expected", "checkpointing"), [(141, (8, 2), False), (80, (8, 2), True), (48, (4, 4), True)]
)
def test_training_all_weights_checkpoints_activations_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, memory_gib: float, expected: tuple[int, int], checkpointing: bool
) -> None:
    monkeypatch.setattr(batches, "memory_gib", lambda device: memory_gib)
    settings, gpu = TrainSettings(train="all"), torch.device("cuda")
    assert resolve_batch_size(settings, gpu) == BatchSize(*expected)
    assert batches.preset_of(gpu, "all").checkpointing == checkpointing


@pytest.mark.parametrize(
    ("gpus", "given", "expected"), [(2, {}, (2, 4)), (4, {"batch_size": 1}, (1, 4)), (16, {}, (1, 1))]
)
def test_gpus_share_the_16_clips_of_a_step(gpus: int, given: dict[str, int], expected: tuple[int, int]) -> None:
    size = resolve_batch_size(TrainSettings(gpus=gpus, **given), CPU)  # type: ignore[arg-type]
    assert (size.micro, size.accumulation) == expected
    assert size.effective == 16


def test_gpus_that_cannot_share_16_clips_evenly_are_refused() -> None:
    with pytest.raises(ConfigError, match="can't be shared evenly among 3 GPUs"):
        resolve_batch_size(TrainSettings(gpus=3), CPU)
    assert resolve_batch_size(TrainSettings(gpus=3, batch_size=2, gradient_accumulation_steps=2), CPU).effective == 12


def a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], gib: float) -> torch.device:
    monkeypatch.setattr(batches, "memory_gib", lambda device: gib)  # there may be no GPU here
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    return torch.device("cuda")


@pytest.mark.parametrize(
    ("capability", "gib", "precision", "checkpointing"),
    [
        ((9, 0), 141, "bf16", False),
        ((8, 0), 80, "bf16", False),
        ((7, 0), 32, "fp16", False),
        ((7, 5), 15, "fp16", True),
    ],
)
def test_precision_and_checkpointing_follow_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], gib: float, precision: str, checkpointing: bool
) -> None:
    execution = resolve_execution(TrainSettings(), a_gpu(monkeypatch, capability, gib))
    assert (execution.precision, execution.checkpointing) == (precision, checkpointing)


def test_a_cpu_computes_in_fp32_uncompiled() -> None:
    assert resolve_execution(TrainSettings(), CPU) == Execution("fp32", compile=False, checkpointing=False)


def test_what_is_given_wins_over_what_the_gpu_suggests(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(base_precision="fp8", activation_checkpointing=True, compile_blocks=False)
    assert resolve_execution(settings, a_gpu(monkeypatch, (9, 0), 141)) == Execution("fp8", False, True)


def test_fp8_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="device is a CPU"):
        resolve_execution(TrainSettings(base_precision="fp8"), CPU)
    with pytest.raises(DeviceError, match=r"needs compute capability 8\.9 .* Some GPU has 8\.0"):
        resolve_execution(TrainSettings(base_precision="fp8"), a_gpu(monkeypatch, (8, 0), 80))


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


@given(orders)
def test_each_epoch_sees_every_clip_once(order: DataOrder) -> None:
    seen: dict[int, Counter[int]] = {epoch: Counter() for epoch in range(1, order.epochs + 1)}
    for step in range(1, order.total_steps + 1):
        seen[order.epoch_of(step)].update(order.positions(step))
    assert all(counts == Counter(range(order.clips)) for counts in seen.values())


@given(orders)
def test_every_step_is_full_but_the_last_of_an_epoch(order: DataOrder) -> None:
    for step in range(1, order.total_steps + 1):
        size = len(order.positions(step))
        if order.ends_epoch(step):
            assert size == (order.clips % order.per_step or order.per_step)
        else:
            assert size == order.per_step


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


@given(orders, st.integers(1, 300))
def test_max_steps_only_ends_it_earlier(order: DataOrder, max_steps: int) -> None:
    cut = DataOrder(order.clips, order.per_step, order.epochs, max_steps, order.seed)
    assert cut.total_steps == min(max_steps, order.total_steps)
    for step in range(1, cut.total_steps + 1):
        assert cut.positions(step) == order.positions(step)
        assert cut.ends_epoch(step) == (order.ends_epoch(step) or step == max_steps)


@given(orders, st.integers(1, 20))
def test_the_order_of_clips_is_independent_of_the_batch_size(order: DataOrder, per_step: int) -> None:
    other = DataOrder(order.clips, per_step, order.epochs, None, order.seed)

    def clips_of(order: DataOrder) -> list[int]:
        return [position for step in range(1, order.total_steps + 1) for position in order.positions(step)]

    assert clips_of(order) == clips_of(other)

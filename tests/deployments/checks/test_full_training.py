"""Doctor and estimate know what training all weights takes, and what would fit instead."""

from __future__ import annotations

import pytest

from deployments.checks import capacity
from musicgen_core.config import TrainSettings
from musicgen_core.model.model_size import measure_model
from musicgen_core.training.memory import checkpoint_bytes, full_training_gib

LARGE = "facebook/musicgen-large"


def test_memory_is_that_of_weights_gradients_and_states_shared_by_gpus() -> None:
    size = measure_model(LARGE)
    one, small, two = (full_training_gib(size, *of) for of in (("adamw", 1), ("adamw8bit", 1), ("adamw", 2)))
    assert one - small == pytest.approx(6 * size.parameters / 2**30)
    assert one - two == pytest.approx(8 * size.parameters / 2**30)
    assert checkpoint_bytes(size) == 12 * size.parameters


@pytest.mark.parametrize(
    ("gib", "level", "fix"), [(80, "ok", ""), (40, "warning", "adamw8bit"), (16, "problem", "--train lora")]
)
def test_what_fits_instead_is_named(monkeypatch: pytest.MonkeyPatch, gib: int, level: str, fix: str) -> None:
    monkeypatch.setattr(capacity, "main_memory_bytes", lambda: gib * 2**30)
    [found] = capacity.check_memory(measure_model(LARGE), "cpu", "all")
    assert found.level == level and fix in (found.fix or "")
    assert "--train all --gpus 2" in found.found


def test_a_run_directory_has_room_for_full_checkpoints() -> None:
    size = measure_model(LARGE)
    needed = capacity.run_directory_bytes(size, TrainSettings(train="all"), 1000)
    assert needed > 2 * checkpoint_bytes(size)

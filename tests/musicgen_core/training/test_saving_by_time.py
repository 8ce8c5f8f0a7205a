"""`latest.pt` by the clock, between the steps that save."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from musicgen_core.training.hooks import Hooks
from tests.musicgen_core.training.trainers import ONE, MakeTrainer


def test_latest_is_saved_every_few_minutes(trainer_of: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def tick() -> float:
        nonlocal now
        now += 10.0
        return now

    monkeypatch.setattr("musicgen_core.training.loop.time", SimpleNamespace(monotonic=tick))
    saves: list[bool] = []
    trainer = trainer_of(ONE, save_every_minutes=1.0)
    trainer.run(Hooks(lambda row: None, lambda epoch, best: None, saves.append, lambda: False))
    assert saves and not any(saves)

"""The loop in isolation: the trainer and its hooks, without files."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips
from musicgen_core.errors import Cancelled
from musicgen_core.model.decoder import MusicgenLM
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.process import ENDING
from musicgen_core.training.batches import BatchSize
from musicgen_core.training.hooks import Hooks
from musicgen_core.training.loop import Trainer
from musicgen_core.training.optimization import learning_rate
from tests.killing import Killed
from tests.musicgen_core.training.trainers import MakeTrainer, Row


@pytest.fixture
def make_trainer(debug_model: BaseModel, text_encoder: TextEncoder, clips: Clips) -> MakeTrainer:
    def make(micro: int = 2, accumulation: int = 1, cfg_dropout: float = 0.3, **given: Any) -> Trainer:
        settings = TrainSettings(**{"num_epochs": 2, "learning_rate": 1e-3, **given})
        return Trainer(load_lm(debug_model), text_encoder, clips, settings, BatchSize(micro, accumulation), cfg_dropout)

    return make


def run(trainer: Trainer, cancelled: Callable[[], bool] = lambda: False) -> tuple[list[Row], list[Any]]:
    """Train to the end → the rows and, in their order, the other calls."""
    rows: list[Row] = []
    calls: list[Any] = []

    def on_step(row: Row) -> None:
        rows.append(dict(row))
        calls.append(("step", row["step"]))

    trainer.run(
        Hooks(
            on_step=on_step,
            on_epoch=lambda epoch, is_best: calls.append(("epoch", epoch)),
            on_interval=lambda due: calls.append(("interval", trainer.progress.step)),
            cancelled=cancelled,
        )
    )
    return rows, calls


def losses_of(rows: list[Row]) -> list[float]:
    return [row["train/loss"] for row in rows]


@pytest.mark.parametrize(("micro", "accumulation"), [(4, 1), (1, 4)])
def test_the_micro_batch_does_not_change_the_loss_curve(
    make_trainer: MakeTrainer, micro: int, accumulation: int
) -> None:
    """Not even with dropout: a clip's masks are its own."""
    expected, _ = run(make_trainer(2, 2))
    rows, _ = run(make_trainer(micro, accumulation))
    np.testing.assert_allclose(losses_of(rows), losses_of(expected), rtol=1e-5)
    assert rows[-1]["val/loss"] == pytest.approx(expected[-1]["val/loss"], rel=1e-5)


def test_everything_happens_once_and_in_order(make_trainer: MakeTrainer) -> None:
    _, calls = run(make_trainer(save_every_steps=3))
    assert calls == [
        *[("step", 1), ("step", 2)],
        *[("interval", 3), ("step", 3), ("epoch", 1)],
        *[("step", 4), ("step", 5)],
        *[("interval", 6), ("step", 6), ("epoch", 2)],
    ]


def test_max_steps_ends_its_epoch_early(make_trainer: MakeTrainer) -> None:
    rows, calls = run(make_trainer(max_steps=4))
    assert calls[-2:] == [("step", 4), ("epoch", 2)]
    assert rows[-1]["train/epoch_loss"] == rows[-1]["train/loss"]


def test_the_loss_of_an_epoch_is_the_mean_over_its_clips(make_trainer: MakeTrainer) -> None:
    rows, _ = run(make_trainer(micro=2, num_epochs=1))  # 5 clips: 2 + 2 + 1
    mean = (2 * rows[0]["train/loss"] + 2 * rows[1]["train/loss"] + rows[2]["train/loss"]) / 5
    assert rows[2]["train/epoch_loss"] == pytest.approx(mean)


def test_the_learning_rate_rises_over_the_warm_up_and_then_stays(make_trainer: MakeTrainer) -> None:
    rows, _ = run(make_trainer(warmup_steps=4))
    assert [row["train/lr"] for row in rows] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8535534, 0.5, 0.1464466]),
    ],
)
def test_the_schedule_follows_the_warm_up(schedule: Any, expected: list[float]) -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_steps=2, schedule=schedule)
    assert [learning_rate(settings, step, 6) for step in range(1, 7)] == pytest.approx(expected)


def test_only_the_adapter_changes(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    lm: MusicgenLM = trainer.learner.model
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    run(trainer)
    changed = {name for name, tensor in lm.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_the_seed_decides(make_trainer: MakeTrainer) -> None:
    torch.manual_seed(1)
    first, _ = run(make_trainer(seed=3))
    torch.manual_seed(2)
    assert losses_of(run(make_trainer(seed=3))[0]) == losses_of(first)
    assert losses_of(run(make_trainer(seed=4))[0]) != losses_of(first)


def test_descriptions_that_are_always_dropped_do_not_matter(
    make_trainer: MakeTrainer, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_text = losses_of(run(make_trainer(cfg_dropout=0.0, max_steps=2))[0])
    without = losses_of(run(make_trainer(cfg_dropout=1.0, max_steps=2))[0])
    monkeypatch.setitem(vars(clips), "descriptions", ["something else"] * len(clips))
    assert losses_of(run(make_trainer(cfg_dropout=1.0, max_steps=2))[0]) == without != with_text


def test_cancelled_it_saves_and_raises(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    calls: list[Any] = []
    hooks = Hooks(
        lambda row: calls.append(row["step"]),
        lambda epoch, is_best: None,
        lambda due: calls.append(("interval", due)),
        lambda: trainer.progress.step == 2,
        on_interruption=lambda: calls.append("interrupted"),
    )
    with pytest.raises(Cancelled, match="after step 2"):
        trainer.run(hooks)
    assert calls == [1, 2, "interrupted"]


def test_stopped_before_its_first_step_there_is_nothing_to_save(make_trainer: MakeTrainer) -> None:
    saves: list[int] = []
    hooks = Hooks(
        on_step=lambda row: None,
        on_epoch=lambda epoch, is_best: None,
        on_interval=lambda due: saves.append(0),
        cancelled=lambda: True,
        on_interruption=lambda: saves.append(0),
    )
    with pytest.raises(Cancelled):
        make_trainer().run(hooks)
    assert saves == []


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_during_an_update_saves_the_whole_step(make_trainer: MakeTrainer, number: signal.Signals) -> None:
    trainer = make_trainer()
    saved: list[int] = []
    whole_step = trainer.optimizer.step

    def interrupted_in_the_third(*args: Any) -> None:
        if trainer.progress.step == 2:
            signal.raise_signal(number)
        whole_step()

    def kill(*_: object) -> None:
        raise Killed

    trainer.optimizer.step = interrupted_in_the_third  # type: ignore[assignment]
    before = signal.signal(number, kill)
    try:
        with pytest.raises(Killed):
            trainer.run(
                Hooks(
                    on_step=lambda row: None,
                    on_epoch=lambda epoch, is_best: None,
                    on_interval=lambda due: None,
                    cancelled=lambda: False,
                    on_interruption=lambda: saved.append(trainer.progress.step),
                )
            )
    finally:
        signal.signal(number, before)
    assert saved == [3]


def test_while_an_update_is_half_done_nothing_is_saved(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    saves: list[int] = []
    whole_step = trainer.optimizer.step

    def killed_in_the_third(*args: Any) -> None:
        whole_step()
        if trainer.progress.step == 2:
            raise Killed

    trainer.optimizer.step = killed_in_the_third  # type: ignore[assignment]
    with pytest.raises(Killed):
        trainer.run(
            Hooks(
                on_step=lambda row: None,
                on_epoch=lambda epoch, is_best: None,
                on_interval=lambda due: saves.append(trainer.progress.step),
                cancelled=lambda: False,
                on_interruption=lambda: saves.append(trainer.progress.step),
            )
        )
    assert saves == []


@pytest.mark.parametrize(
    ("step", "where"), [(2, "on_interval"), (2, "on_step"), (3, "on_step"), (3, "validate"), (3, "on_epoch")]
)
def test_what_was_interrupted_is_done_again_and_comes_out_the_same(
    make_trainer: MakeTrainer, step: int, where: str
) -> None:
    """Steps 2 and 4 save, step 3 ends the first epoch."""
    settings = {"save_every_steps": 2}
    uninterrupted = make_trainer(**settings)
    expected, _ = run(uninterrupted)

    first = make_trainer(**settings)
    saved: list[Any] = []

    def killed(name: str) -> None:
        if first.progress.step == step and name == where:
            raise Killed

    def save(due: bool) -> None:
        saved.append(copy.deepcopy((first.learner.weights(), first.learner.optimizer_state(), first.progress)))
        if due:
            killed("on_interval")

    whole_validate = first.validate

    def validate(cancelled: Callable[[], bool]) -> dict[str, float]:
        killed("validate")
        return whole_validate(cancelled)

    first.validate = validate  # type: ignore[assignment, method-assign]
    hooks = Hooks(
        on_step=lambda row: killed("on_step"),
        on_epoch=lambda epoch, is_best: killed("on_epoch"),
        on_interval=save,
        cancelled=lambda: False,
        on_interruption=lambda: save(False),
    )
    with pytest.raises(Killed):
        first.run(hooks)

    second = make_trainer(**settings)
    second.restore(*saved[-1])
    assert second.progress.step == step and second.progress.pending is not None
    rows, calls = run(second)
    assert losses_of(rows) == losses_of(expected[step - 1 :])
    assert rows[-1]["val/loss"] == expected[-1]["val/loss"]
    assert [row.get("best/loss") for row in rows] == [row.get("best/loss") for row in expected[step - 1 :]]
    assert ("epoch", 1) in calls and (("interval", 2) in calls) == (step == 2)
    assert second.progress == uninterrupted.progress
    final, wanted = second.learner.weights(), uninterrupted.learner.weights()
    assert all(torch.equal(final[name], wanted[name]) for name in wanted)

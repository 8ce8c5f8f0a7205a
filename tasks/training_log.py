"""How a training goes, live: its page, progress for whoever listens, and a line a minute."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from musicgen_core import storage, tracking
from musicgen_core.language import message
from musicgen_core.run_layout import RunLayout
from musicgen_core.stages import Stage
from musicgen_core.wording import joined
from tasks.advice import in_form
from tasks.artifacts import Artifacts
from tasks.progress import LOG_EVERY_SECONDS, Pace, Update, report, run_logger
from tasks.run_state import show_waiting
from tasks.training_page import TrainingFigures, newest_samples, samples_page, training_page

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

SHOW_EVERY_SECONDS = 30.0
PROGRESS_EVERY_SECONDS = 5.0
DRAWING_SHARE = 0.01
"""Of this process's time at most: the training runs in it, and a drawing takes longer the more steps there are."""


class TrainingLog:
    """Gathers the rows of a training and shows them. Steps come from one thread; pages are made in another.

    Args:
        name: the run directory's.
        run_dir: where earlier rows, samples and WandB's files are.
        artifacts: of the run.
    """

    def __init__(self, name: str, run_dir: str, artifacts: Artifacts) -> None:
        self._name, self._run_dir = name, storage.as_path(run_dir)
        self._artifacts = artifacts
        self._logger = run_logger()
        self._showing, self._logging = Pace(SHOW_EVERY_SECONDS), Pace(LOG_EVERY_SECONDS)
        self._progressing = Pace(PROGRESS_EVERY_SECONDS)
        self._figures = TrainingFigures()
        self._samples: tuple[str, ...] = ()
        self._is_waiting = False
        self._stage = ""

    def begin_stage(self, stage: Stage) -> None:
        """Show what is done before, between and after the steps: reading the model, validating."""
        self._stage = str(stage)
        if stage.done is None or self._progressing.is_due():
            self._show_progress()

    def generate(self, done: int, total: int) -> None:
        """`on_prior` of a training."""
        text = message("generating clips with the base model")
        report(Update("generate", self._name, done, total, text))
        if self._progressing.is_due():
            self._artifacts.progress("training-progress", done, total, f"{self._name}: {text}")

    def start(self, done: int, total: int) -> None:
        """`on_start` of a training."""
        for row in _earlier_rows(self._run_dir, done):
            self._figures.add(row)
        self._figures.done, self._figures.total = done, total
        self._stage = ""
        self._show_progress()
        report(Update("train", self._name, done, total))

    def hear(self, row: dict[str, float]) -> None:
        """`on_step` of a training."""
        figures, follows_stage = self._figures, bool(self._stage)
        self._stage = ""
        figures.add(row)
        figures.time_step()
        text = joined((message("epoch {number}", number=int(row["epoch"])), _loss_of(row)))
        report(Update("train", self._name, figures.done, figures.total, text))
        if self._logging.is_due():
            self._logger.info("%s", figures.line())
        if self._progressing.is_due() or follows_stage:
            self._show_progress()
        if self._showing.is_due():
            self.show("running")

    def wait(self, reason: str | None) -> None:
        """`on_wait` of a training."""
        figures = self._figures
        self._is_waiting = reason is not None
        waiting = message("waiting: {reason}", reason=reason) if reason else ""
        report(Update("train", self._name, figures.done, figures.total, waiting))
        self.show(waiting or "running")
        show_waiting(reason)

    def show(self, state: str, wandb_url: str | None = None) -> None:
        """Bring the artifacts up to date."""
        state = in_form(state)
        self._stage = "" if state == "running" else state
        self._show_progress()
        table, rows = self._figures.table(state), self._figures.rows[:]

        def page() -> str:
            started = time.thread_time()
            text = training_page(table, rows, self._run_dir, wandb_url)
            self._showing.seconds = max(SHOW_EVERY_SECONDS, (time.thread_time() - started) / DRAWING_SHARE)
            self._show_samples()
            return text

        self._artifacts.markdown("training", page, f"{self._name}: {self._words(state)}")

    def stop(self, reason: str) -> None:
        """It ended before its end: told to, or by an error."""
        self._figures.forget_speed()
        self.show(f"stopped: {reason}")
        if self._figures.done:
            self._logger.info("stopped after step %d; a retry goes on from the last checkpoint", self._figures.done)

    def cancel(self) -> str:
        """It was cancelled, and is saved → the message of its state."""
        figures = self._figures
        figures.forget_speed()
        if not figures.total:
            message = "cancelled before training began; Retry continues from the newest checkpoint, if there is one"
        elif self._is_waiting:
            message = f"cancelled at step {figures.done:,}, not saved; Retry continues from the last checkpoint"
        else:
            message = f"cancelled at step {figures.done:,} of {figures.total:,}; Retry continues from there"
        self.show(message)
        return message

    def _show_progress(self) -> None:
        figures = self._figures
        text = f"{self._name}: {self._words(self._stage)}"
        self._artifacts.progress("training-progress", figures.done, figures.total, text)

    def _words(self, state: str) -> str:
        """Return what happens now, and how far the steps are."""
        return state if state.startswith("cancelled") else "; ".join(filter(None, (state, self._figures.line())))

    def _show_samples(self) -> None:
        found = newest_samples(self._run_dir)
        if found and found != self._samples:
            self._samples = found
            description = f"The last sample clips of {self._name}"
            self._artifacts.markdown("training-samples", lambda: samples_page(found), description)


def _loss_of(row: Mapping[str, float]) -> str:
    return message("loss {loss:.3f}", loss=row["train/loss"]) if "train/loss" in row else message("skipped")


def _earlier_rows(run_dir: UPath, done: int) -> list[dict[str, float]]:
    """What a training that goes on had logged before."""
    metrics = RunLayout(run_dir).metrics
    try:
        if not done or not metrics.exists():
            return []
        with storage.staged(metrics) as local:
            rows = tracking.read_metrics(local)
            whole = [row for row in rows if "train/lr" in row and math.isfinite(row.get("epoch", math.nan))]
            return [row for row in whole if row["step"] <= done]
    except Exception:  # a picture is not worth the training
        logger.warning("the metrics in %s could not be read, so the page begins here", metrics, exc_info=True)
        return []

"""Live progress of a training run: its page, updates for the listener, and a line a minute in the log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from musicgen_core import storage, tracking
from musicgen_core.errors import is_refusal, reason_of
from musicgen_core.escaping import markdown_block, markdown_text
from musicgen_core.language import message
from musicgen_core.run_layout import RunLayout
from musicgen_core.stages import Stage
from musicgen_core.wording import joined
from tasks.artifacts import Artifacts
from tasks.forms import in_form
from tasks.interruption import INTERRUPTED, TerminalCommand
from tasks.progress import LOG_EVERY_SECONDS, Pace, Update, report, run_logger
from tasks.runs import show_waiting
from tasks.training_page import TrainingFigures, newest_samples, samples_page, training_page

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

SHOW_EVERY_SECONDS = 30.0
PROGRESS_EVERY_SECONDS = 5.0
DRAWING_SHARE = 0.01
"""Maximum share of this process's time for drawing, which takes longer the more steps there are"""


class TrainingLog:
    """Collects the metrics of a training run and shows them. One thread adds steps; another renders pages."""

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
        """Show the stages before, between and after steps, such as loading the model or validation."""
        self._stage = str(stage)
        if stage.done is None or self._progressing.is_due():
            self._show_progress()

    def generate(self, done: int, total: int) -> None:
        """Show how many clips the base model has generated; the callback `on_prior` of training."""
        text = message("generating clips with the base model")
        report(Update("generate", self._name, done, total, text))
        if self._progressing.is_due():
            self._artifacts.progress("training-progress", done, total, f"{self._name}: {text}")

    def start(self, done: int, total: int) -> None:
        """Load earlier metrics and show the first step; the callback `on_start` of training."""
        for row in _earlier_rows(self._run_dir, done):
            self._figures.add(row)
        self._figures.done, self._figures.total = done, total
        self._stage = ""
        self._show_progress()
        report(Update("train", self._name, done, total))

    def hear(self, row: dict[str, float]) -> None:
        """Record and show a step; the callback `on_step` of training."""
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
        """Show that training waits, or no longer does; the callback `on_wait` of training."""
        figures = self._figures
        self._is_waiting = reason is not None
        waiting = message("waiting: {reason}", reason=reason) if reason else ""
        report(Update("train", self._name, figures.done, figures.total, waiting))
        self.show(waiting or "running")
        show_waiting(reason)

    def show(self, state: str, wandb_url: str | None = None, note: str = "") -> None:
        """Update the artifacts. `note`: what to read below the figures, as Markdown."""
        state = in_form(state)
        self._stage = "" if state == "running" else state
        self._show_progress()
        table, rows, has_begun = self._figures.table(state), self._figures.rows[:], self._has_begun

        def page() -> str:
            started = time.thread_time()
            text = training_page(table, rows, self._run_dir, wandb_url, note, has_begun)
            self._showing.seconds = max(SHOW_EVERY_SECONDS, (time.thread_time() - started) / DRAWING_SHARE)
            self._show_samples()
            return text

        self._artifacts.markdown("training", page, f"{self._name}: {self._words(state)}")

    def fail(self, error: Exception) -> None:
        """Show the error that ended training, or for which it was refused before the first step."""
        self.stop("refused" if is_refusal(error) and not self._has_begun else "failed", reason_of(error))

    def stop(self, state: str, reason: str = "") -> None:
        """Show that training stopped early, and the reason."""
        self._figures.forget_speed()
        self.show(state, note=f"**Reason.** {markdown_text(in_form(reason))}" if reason else "")
        if self._figures.done:
            self._logger.info("stopped after step %d; a retry resumes from the last checkpoint", self._figures.done)

    def cancel(self, command: TerminalCommand | None = None) -> str:
        """Show that training was cancelled in the UI, or by interrupting a command; return the state's message."""
        self._figures.forget_speed()
        step, steps = self._figures.done, self._figures.total
        if not self._has_begun:
            where, start = "before training began", "the newest checkpoint, if there is one"
            text = message(
                "cancelled before training began; Retry continues from the newest checkpoint, if there is one"
            )
        elif self._is_waiting:
            where, start = f"at step {step:,}, not saved", "the last checkpoint"
            text = message("cancelled at step {step:,}, not saved; Retry continues from the last checkpoint", step=step)
        else:
            where, start = f"at step {step:,} of {steps:,}", "there"
            text = message(
                "cancelled at step {step:,} of {steps:,}; Retry continues from there", step=step, steps=steps
            )
        if command is None:
            self.show(text)
            return text
        state = f"{INTERRUPTED} {where}"
        self.show(state, note=f"To continue from {start}:\n\n{markdown_block(command.again)}" if command.again else "")
        return command.ended(state, f" from {start}")

    @property
    def _has_begun(self) -> bool:
        return self._figures.total > 0  # it has come to its steps, and has a run at WandB

    def _show_progress(self) -> None:
        figures = self._figures
        text = f"{self._name}: {self._words(self._stage)}"
        self._artifacts.progress("training-progress", figures.done, figures.total, text)

    def _words(self, state: str) -> str:
        """Return the current state and the progress of the steps."""
        is_ended = state.startswith(("cancelled", INTERRUPTED))
        return state if is_ended else "; ".join(filter(None, (state, self._figures.line())))

    def _show_samples(self) -> None:
        found = newest_samples(self._run_dir)
        if found and found != self._samples:
            self._samples = found
            description = f"The last sample clips of {self._name}"
            self._artifacts.markdown("training-samples", lambda: samples_page(found), description)


def _loss_of(row: Mapping[str, float]) -> str:
    return message("loss {loss:.3f}", loss=row["train/loss"]) if "train/loss" in row else message("skipped")


def _earlier_rows(run_dir: UPath, done: int) -> list[dict[str, float]]:
    """Return the rows that a resumed training run logged before, up to its checkpoint's step."""
    metrics = RunLayout(run_dir).metrics
    try:
        if not done or not metrics.exists():
            return []
        with storage.staged(metrics) as local:
            rows = tracking.read_metrics(local)
            whole = [row for row in rows if "train/lr" in row and math.isfinite(row.get("epoch", math.nan))]
            return [row for row in whole if row["step"] <= done]
    except Exception:  # training must not depend on the page
        logger.warning("the metrics in %s could not be read, so the page begins here", metrics, exc_info=True)
        return []

"""Keeps the files of a training while it runs. Several processes that train together have one Saver among them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.config import TrainSettings
from musicgen_core.errors import RunDirectoryError, raise_if_interrupted, reason_of
from musicgen_core.language import message
from musicgen_core.model.lora import Adapter, save_adapter
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import (
    BEST_ADAPTER,
    BEST_MODEL,
    EPOCH_CHECKPOINT,
    FINAL_ADAPTER,
    LATEST_ADAPTER,
    epoch_adapter,
)
from musicgen_core.stages import announce
from musicgen_core.training.background import RETRY_DELAYS_S, Failures, attempt
from musicgen_core.training.checkpoint import Checkpoint, save_checkpoint, snapshot
from musicgen_core.training.full_models import FullModels
from musicgen_core.training.loop import Trainer
from musicgen_core.training.mirror import SecondCopy
from musicgen_core.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)

WAITING_DELAY_S = 10.0
"""Between two attempts to save while the run waits for it."""
PICTURES_EVERY_SECONDS = 10.0
"""The trainer waits while they are drawn, half a second or more, which short epochs are not worth."""


class Saver:
    """Writes what a trainer has learned.

    Small files are written while the trainer waits, in an order in which latest.pt is the last: what it says to be
    done is in place. While a file can't be written, `must_wait` holds the run back, the newest state stays in memory,
    and latest.pt as it is: if the process ends then, a restart repeats the steps after it.

    Args:
        fixed: what must not change when the training goes on; kept in every checkpoint.
        copy_to: the place of a second copy, or None.
        run_id: that of config.json, by which a copy is known as this run's; None: config.json was lost.
        on_wait: called with the reason when the run has to wait until it can save, and with None when it continues.

    Attributes:
        saved_step: the newest step that a restart would continue from.
    """

    def __init__(
        self,
        files: RunDirectory,
        model: BaseModel,
        trainer: Trainer,
        settings: TrainSettings,
        fixed: dict[str, Any],
        copy_to: UPath | None,
        run_id: str | None,
        on_wait: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self.files, self.model, self.trainer, self.settings, self.fixed = files, model, trainer, settings, fixed
        self.failures = Failures()
        self.full_models = FullModels(files, model, settings.keep_last, self.failures)
        step = trainer.progress.step
        begins_after = (step, trainer.order.epochs_done(step))
        self.copy: SecondCopy | None = None
        if copy_to is not None:
            self.copy = SecondCopy(files, copy_to, self.failures, *begins_after, run_id)
        self.saved_step = step
        self._on_wait = on_wait
        self._is_waiting = False
        self._obstacle = self._waits_for = ""  # why the first of the unwritten files is one
        self._next_attempt = 0.0
        self._unwritten: dict[str, Callable[[], None]] = {}
        self._owes = False  # full models, to be written once everything before them is
        self._misses_metrics = False
        self._drawn_at = time.monotonic()
        self._outer_error = sys.exception()

    def prepare(self, actions: dict[str, Callable[[], None]]) -> None:
        """Do what must be done before the first step, by path; if one fails, `must_wait` holds the run back."""
        self._write(actions)

    def save_interval(self, is_due: bool) -> None:
        """Update latest.pt; where a step checkpoint `is_due`, write that too."""
        is_interrupted = sys.exception() is not self._outer_error
        if is_interrupted:
            self.full_models.background.abandon()  # seconds count
        checkpoint = self._checkpoint()
        is_saved = self._write(self._latest(checkpoint))
        if is_interrupted and not is_saved:
            self.failures.report(
                f"what was learned after step {self.saved_step} could not be saved: "
                "running again repeats the steps after it"
            )
        if is_due and is_saved:
            self._write_step_checkpoint(checkpoint)
        elif is_due:
            self._unwritten[str(self.files.step_checkpoint(self.trainer.progress.step))] = partial(
                self._write_step_checkpoint, checkpoint
            )

    def save_epoch(self, epoch: int, is_best: bool) -> None:
        """Write the adapters of an epoch, and have its full models written."""
        owed = {"each_epoch": [f"{EPOCH_CHECKPOINT}{epoch}"], "best_and_final": [], "none": []}
        models = owed[self.settings.full_models]
        if is_best and self.settings.full_models != "none":
            models = [BEST_MODEL, *models]
        if time.monotonic() - self._drawn_at > PICTURES_EVERY_SECONDS:
            self._plot()
        self._save([epoch_adapter(epoch), *([BEST_ADAPTER] if is_best else [])], models)

    def save_best(self) -> None:
        """Write the best adapter so far, between two epochs' ends, and have its full model written."""
        self._save([BEST_ADAPTER], [BEST_MODEL] if self.settings.full_models != "none" else [])

    def save_best_again(self, adapter: Adapter) -> None:
        """Make an earlier epoch the best one again, after what came later was set aside."""
        writes = self._adapters(adapter, [BEST_ADAPTER])
        if self.settings.full_models != "none" and not self.files.owed(adapter.global_step).exists():
            writes |= self._owed(replace(self._checkpoint(), adapter=adapter, owed=[BEST_MODEL]))
        self._write(writes)

    def write_metrics(self, write: Callable[[], None]) -> None:
        """A full disk must not end a training: rows that can't be written now come with later ones."""
        try:
            write()
            self._misses_metrics = False
        except OSError as error:
            if not self._misses_metrics:  # else each step of a long outage would say so
                self.failures.report(
                    f"{self.files.local_metrics} could not be written ({reason_of(error)}); its rows are kept for later"
                )
            self._misses_metrics = True

    def must_wait(self) -> bool:
        """Return whether what was learned still can't be saved; sleeps for a second at most, or tries again."""
        if not self._unwritten:
            return False
        if not self._is_waiting:
            self._is_waiting, self._next_attempt = True, time.monotonic() + WAITING_DELAY_S
            self._waits_for = self._obstacle
            reason = f"{self._obstacle}; the run waits until it can be saved"
            logger.warning("%s, and tries again every %g s; the newest state is in memory", reason, WAITING_DELAY_S)
            self._on_wait(reason)
        if (left := self._next_attempt - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            return True
        if not self._write({}, delays_s=()):
            self._next_attempt = time.monotonic() + WAITING_DELAY_S
            return True
        self._is_waiting = False
        self.failures.resolve(self._waits_for, "the run waited until it could be saved, and nothing is lost")
        logger.info("saved as of step %d: the run continues", self.saved_step)
        self._on_wait(None)
        return False

    def claim_copy(self) -> None:
        """Lock the second copy until `close`.

        Raises:
            RunDirectoryError: another run writes there.
        """
        if self.copy is not None:
            self.copy.claim()

    def finish(self, check: Callable[[], None]) -> None:
        """Write the final files, when everything before them is in place.

        Args:
            check: called while this waits; may raise to interrupt it.

        Raises:
            RunDirectoryError: a file that belongs to the end can't be written.
        """
        announce(message("writing the final files"))
        adapter = self._checkpoint().adapter
        self._plot()
        self._write_or_raise({str(self.files.stage): self.files.upload_stage})
        self.full_models.write_owed()
        self.full_models.background.drain(check)
        if self.settings.full_models != "none":
            self.full_models.write_final(adapter)
        self._write_or_raise(self._adapters(adapter, [FINAL_ADAPTER]))
        if self.copy is not None:
            self.copy.finish()

    def close(self) -> list[Any]:
        """Abandon what is unfinished → threads that have not noticed yet."""
        backgrounds = [self.full_models.background]
        self.full_models.background.abandon()
        if self.copy is not None:
            self.copy.abandon()
            backgrounds.append(self.copy.background)
        for background in backgrounds:
            background.close(patience_s=5.0)
        if self.copy is not None:
            self.copy.release()
        return [background.thread for background in backgrounds if background.thread.is_alive()]

    def adapter(self) -> Adapter:
        """What is learned so far."""
        trainer, progress = self.trainer, self.trainer.progress
        return Adapter(
            lora=trainer.adapter_tensors(),
            config=trainer.lora.plain(),
            epoch=trainer.order.epoch_of(max(1, progress.step)),
            global_step=progress.step,
            loss=progress.loss,
            base_model=self.model.identity,
        )

    def _checkpoint(self) -> Checkpoint:
        progress = replace(self.trainer.progress, pending=snapshot(self.trainer.progress.pending))
        return Checkpoint(self.adapter(), snapshot(self.trainer.optimizer_state()), progress, self.fixed)

    def _save(self, adapters: list[str], models: list[str]) -> None:
        """Write what is learned under these names, what these full models are made from, and latest.pt."""
        checkpoint = self._checkpoint()
        writes = self._adapters(checkpoint.adapter, adapters)
        if models:
            writes |= self._owed(checkpoint.with_owed(models))
        self._write({**writes, **self._latest(checkpoint)})

    def _owed(self, checkpoint: Checkpoint) -> dict[str, Callable[[], None]]:
        target = self.files.owed(checkpoint.adapter.global_step)
        self._owes = True
        return {str(target): partial(save_checkpoint, checkpoint, target)}

    def _adapters(self, adapter: Adapter, names: list[str]) -> dict[str, Callable[[], None]]:
        return {str(path): partial(save_adapter, adapter, path) for path in map(self.files.adapter, names)}

    def _latest(self, checkpoint: Checkpoint) -> dict[str, Callable[[], None]]:
        return {
            str(self.files.stage): self.files.upload_stage,
            **self._adapters(checkpoint.adapter, [LATEST_ADAPTER]),
            str(self.files.latest): partial(self._save_latest, checkpoint),
        }

    def _save_latest(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(checkpoint, self.files.latest)
        self.saved_step = checkpoint.progress.step

    def _write(self, writes: dict[str, Callable[[], None]], delays_s: Sequence[float] | None = None) -> bool:
        """Write these files, after those that could not be written before; stops at the first that can't."""
        before = dict(self._unwritten)
        for target, write in writes.items():
            self._unwritten.pop(target, None)  # an older content; what replaces it has its place in the order
            self._unwritten[target] = write
        try:
            for target, write in list(self._unwritten.items()):
                if (error := attempt(write, RETRY_DELAYS_S if delays_s is None else delays_s)) is not None:
                    self._obstacle = f"{target} could not be written ({reason_of(error)})"
                    if not self._is_waiting:  # else it is known
                        self.failures.report(self._obstacle)
                    return False
                del self._unwritten[target]
        except BaseException:
            self._unwritten = before  # the trainer takes back what was interrupted, and saves where it then is
            raise
        if self._owes:
            self._owes = False
            self.full_models.write_owed()
        if self.copy is not None:
            self.copy.update()
        return True

    def _write_or_raise(self, writes: dict[str, Callable[[], None]]) -> None:
        if not self._write(writes):
            raise RunDirectoryError(
                message(
                    "the training is done and saved in {latest}, but not all of its files: {obstacle}",
                    latest=self.files.latest,
                    obstacle=self._obstacle,
                ),
                message("Make room or fix the cause and run again: only the last files are written then"),
            )

    def _write_step_checkpoint(self, checkpoint: Checkpoint) -> None:
        target = self.files.step_checkpoint(checkpoint.progress.step)

        def write() -> None:
            save_checkpoint(checkpoint, target)
            if self.settings.keep_last is not None:
                for path in self.files.step_checkpoints()[self.settings.keep_last :]:
                    path.unlink(missing_ok=True)

        if (error := attempt(write, RETRY_DELAYS_S)) is not None:
            self.failures.report(f"{target} could not be written and is left out ({reason_of(error)})")

    def _plot(self) -> None:
        try:
            rows = tracking.read_metrics(self.files.local_metrics)
            for name, plot in tracking.pictures_of(rows).items():
                with storage.publish(storage.as_path(self.files.stage / name)) as path:
                    plot(rows, path)
        except Exception as error:  # a picture is not worth a training
            raise_if_interrupted(error)
            self.failures.report(f"the pictures of metrics.jsonl could not be drawn ({reason_of(error)})")
        self._drawn_at = time.monotonic()

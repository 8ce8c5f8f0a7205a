"""Saves the files of a run while it trains; with several processes, on the main rank only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

from upath import UPath

from musicgen_core import storage, tracking
from musicgen_core.config import TrainSettings
from musicgen_core.errors import RunDirectoryUnavailable, raise_if_interrupted, reason_of
from musicgen_core.language import message
from musicgen_core.model.adapters import Adapter, save_adapter
from musicgen_core.model.trained_model import Learned, TrainedModel
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import (
    BEST_ADAPTER,
    BEST_MODEL,
    EMA_ADAPTER,
    EMA_MODEL,
    EPOCH_CHECKPOINT,
    FINAL_ADAPTER,
    FINAL_MODEL,
    LATEST_ADAPTER,
    epoch_adapter,
)
from musicgen_core.stages import announce
from musicgen_core.training.files.background import RETRY_DELAYS_S, Failures, Write, WriteQueue, retry
from musicgen_core.training.files.checkpoint import Checkpoint, TrainingState, save_checkpoint, snapshot
from musicgen_core.training.files.full_models import FullModels, write_full_model
from musicgen_core.training.files.mirror import Mirror
from musicgen_core.training.files.run_directory import RunDirectory

logger = logging.getLogger(__name__)

WAITING_DELAY_S = 10.0
"""Seconds between two attempts to save while the run waits."""
PICTURES_EVERY_SECONDS = 10.0
"""Plots are drawn at most this often: the trainer waits for them, half a second or more."""


class Saver:
    """Writes the adapters, checkpoints, plots and full models of a run.

    Small files are written while the trainer waits, with latest.pt last, so that everything it refers to exists. Full
    models are owed: their source, a checkpoint of some hundred MB, is written with the small files, and a thread makes
    the models of it, now or in a later process. With `train all` there are no adapters, and full models are written
    while the trainer waits, too. While a file can't be written, the run waits::

        saving --a file can't be written--> waiting --it can be written--> saving
                                               |
                                               +--interrupted--> latest.pt is of `saved_step`

    In the state `waiting`, `must_wait` blocks the run, the newest state stays in memory, and latest.pt is not replaced:
    if the process ends then, a restart repeats the steps after `saved_step`.

    Args:
        epochs_done: epochs that ended before this process's first step.
        settings: which files are kept.
        fixed: values that must not change when the run resumes; stored in every checkpoint.
        run_id: the run's id in config.json, which identifies its mirror; None if config.json was lost.
        on_wait: called with the reason when the run has to wait until it can save, and with None when it continues.

    Attributes:
        saved_step: the newest step that a restart would resume after.
    """

    def __init__(
        self,
        files: RunDirectory,
        model: BaseModel,
        trainer: TrainingState,
        epochs_done: int,
        settings: TrainSettings,
        fixed: dict[str, Any],
        copy_to: UPath | None,
        run_id: str | None,
        on_wait: Callable[[str | None], None] = lambda reason: None,
    ) -> None:
        self.files, self.model, self.trainer, self.settings, self.fixed = files, model, trainer, settings, fixed
        self.failures = Failures()
        self.full_models = FullModels(files, model, settings.kept, self.failures)
        step = trainer.progress.step
        self.mirror: Mirror | None = None
        if copy_to is not None:
            self.mirror = Mirror(
                files=files,
                target=copy_to,
                failures=self.failures,
                step=step,
                epochs=epochs_done,
                run_id=run_id,
                copies_models=settings.train == "all",
            )
        self.saved_step = step
        self._on_wait = on_wait
        self._queue = WriteQueue()
        self._is_waiting = False
        self._waits_for = ""  # the reason
        self._next_attempt = 0.0
        self._has_owed_models = False  # write full models once all smaller files are written
        self._misses_metrics = False
        self._drawn_at = time.monotonic()

    def save_interval(self, save_step_checkpoint: bool) -> None:
        """Update latest.pt, and write a step checkpoint if `save_step_checkpoint`."""
        checkpoint = self._checkpoint()
        is_saved = self.write(self._latest(checkpoint))
        if save_step_checkpoint and is_saved:
            self._write_step_checkpoint(checkpoint)
        elif save_step_checkpoint:
            target = str(self.files.step_checkpoint(checkpoint.progress.step))
            self._queue.put(Write(target, partial(self._write_step_checkpoint, checkpoint)))

    def save_interrupted(self) -> None:
        """Update latest.pt, for which only seconds are left."""
        self.full_models.background.abandon()
        if not self.write(self._latest(self._checkpoint())):
            self.failures.report(
                f"what was learned after step {self.saved_step} could not be saved: "
                "running again repeats the steps after it"
            )
            if not self._is_waiting:  # otherwise it is announced already
                self._on_wait(self._queue.obstacle)

    def save_epoch(self, epoch: int, is_best: bool) -> None:
        """Write the adapters of an epoch, and its full models in the background."""
        owed = {"each_epoch": [f"{EPOCH_CHECKPOINT}{epoch}"], "best_and_final": [], "none": []}
        models = owed[self.settings.full_models]
        if is_best and self.settings.full_models != "none":
            models = [BEST_MODEL, *models]
        if time.monotonic() - self._drawn_at > PICTURES_EVERY_SECONDS:
            self._plot()
        self._save([epoch_adapter(epoch), *([BEST_ADAPTER] if is_best else [])], models)

    def save_best(self) -> None:
        """Write the best adapter, found within an epoch, and its full model in the background."""
        self._save([BEST_ADAPTER], [BEST_MODEL] if self.settings.full_models != "none" else [])

    def save_best_again(self, learned: Learned) -> None:
        """Restore what an earlier epoch learned as the best, after later files were set aside."""
        if isinstance(learned, TrainedModel):
            self.write([self._model(learned, BEST_MODEL)])
            return
        writes = self._adapters(learned, [BEST_ADAPTER])
        if self.settings.full_models != "none" and not self.files.owed(learned.global_step).exists():
            writes.append(self._owed(replace(self._checkpoint(), learned=learned, owed=[BEST_MODEL])))
        self.write(writes)

    def write_metrics(self, write: Callable[[], None]) -> None:
        """Write metrics; if that fails, as on a full disk, the rows are written together with later ones."""
        try:
            write()
            self._misses_metrics = False
        except OSError as error:
            if not self._misses_metrics:  # report a long outage only once
                self.failures.report(
                    f"{self.files.local_metrics} could not be written ({reason_of(error)}); its rows are kept for later"
                )
            self._misses_metrics = True

    def must_wait(self) -> bool:
        """Return whether the state still can't be saved, after sleeping for up to a second or another attempt."""
        if not self._queue:
            return False
        if not self._is_waiting:
            self._is_waiting, self._next_attempt = True, time.monotonic() + WAITING_DELAY_S
            self._waits_for = self._queue.obstacle
            reason = f"{self._waits_for}; the run waits until it can be saved"
            logger.warning("%s, and tries again every %g s; the newest state is in memory", reason, WAITING_DELAY_S)
            self._on_wait(reason)
        if (left := self._next_attempt - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
            return True
        if not self.write([], delays_s=()):
            self._next_attempt = time.monotonic() + WAITING_DELAY_S
            return True
        self._is_waiting = False
        self.failures.resolve(self._waits_for, "the run waited until it could be saved, and nothing is lost")
        logger.info("saved as of step %d: the run continues", self.saved_step)
        self._on_wait(None)
        return False

    def finish(self, check: Callable[[], None]) -> None:
        """Write the final files, after all others.

        Args:
            check: called while this waits; may raise to interrupt it.

        Raises:
            RunDirectoryError: a final file can't be written.
        """
        announce(message("writing the final files"))
        checkpoint = self._checkpoint()
        self._plot()
        self._write_or_raise([Write(str(self.files.stage), self.files.upload_stage)])
        if isinstance(checkpoint.learned, TrainedModel):
            averages = [] if checkpoint.averaged is None else [self._model(checkpoint.averaged, EMA_MODEL)]
            self._write_or_raise([*averages, self._model(checkpoint.learned, FINAL_MODEL)])
        else:
            self.full_models.write_owed()
            self.full_models.background.drain(check)
            if self.settings.full_models != "none":
                self.full_models.write_final(checkpoint.learned)
            self._write_or_raise(self._adapters(checkpoint.learned, [FINAL_ADAPTER]))
        if self.mirror is not None:
            self.mirror.finish()

    def close(self) -> list[Any]:
        """Abandon unfinished writes, and return the threads that have not ended yet."""
        backgrounds = [self.full_models.background]
        self.full_models.background.abandon()
        if self.mirror is not None:
            self.mirror.abandon()
            backgrounds.append(self.mirror.background)
        for background in backgrounds:
            background.close(patience_s=5.0)
        if self.mirror is not None:
            self.mirror.release()
        return [background.thread for background in backgrounds if background.thread.is_alive()]

    def learned(self) -> Learned:
        """Return what is learned as it is now."""
        return self.trainer.learned(self.model.identity)

    def _checkpoint(self) -> Checkpoint:
        progress = replace(self.trainer.progress, pending=snapshot(self.trainer.progress.pending))
        return Checkpoint(
            learned=self.learned(),
            optimizer=self.trainer.learner.optimizer_state(),
            progress=progress,
            fixed=self.fixed,
            average=self.trainer.learner.average(),
        )

    def _save(self, adapters: list[str], models: list[str]) -> None:
        """Write the adapter under these names, the source of these full models, and latest.pt.

        With `train all`, write the full models themselves, and latest.pt.
        """
        checkpoint, best = self._checkpoint(), (BEST_ADAPTER, BEST_MODEL)
        writes: list[Write] = []
        if isinstance(checkpoint.learned, TrainedModel):
            writes += [self._model(checkpoint.best if name in best else checkpoint.learned, name) for name in models]
        else:
            for name in adapters:
                writes += self._adapters(checkpoint.best if name in best else checkpoint.learned, [name])
            if models:
                writes.append(self._owed(replace(checkpoint, owed=models)))
        self.write([*writes, *self._latest(checkpoint)])

    def _model(self, learned: Learned, name: str) -> Write:
        """Return the full model of a run with `train all`; of those of epochs only the newest are kept, if so set."""
        assert isinstance(learned, TrainedModel)
        target = self.files.full_model(name)

        def write() -> None:
            write_full_model(learned.checkpoint(self.model), target, Event())
            if name.startswith(EPOCH_CHECKPOINT):
                self.full_models.delete_older()

        return Write(str(target), write)

    def _owed(self, checkpoint: Checkpoint) -> Write:
        target = self.files.owed(checkpoint.learned.global_step)
        self._has_owed_models = True
        return Write(str(target), partial(save_checkpoint, checkpoint, target))

    def _adapters(self, learned: Learned, names: list[str]) -> list[Write]:
        """Return an adapter under these names; none with `train all`."""
        if not isinstance(learned, Adapter):
            return []
        return [Write(str(path), partial(save_adapter, learned, path)) for path in map(self.files.adapter, names)]

    def _latest(self, checkpoint: Checkpoint) -> list[Write]:
        return [
            Write(str(self.files.stage), self.files.upload_stage),
            *self._adapters(checkpoint.learned, [LATEST_ADAPTER]),
            *(self._adapters(checkpoint.averaged, [EMA_ADAPTER]) if checkpoint.averaged is not None else ()),
            Write(str(self.files.latest), partial(self._save_latest, checkpoint)),
        ]

    def _save_latest(self, checkpoint: Checkpoint) -> None:
        save_checkpoint(checkpoint, self.files.latest)
        self.saved_step = checkpoint.progress.step

    def write(self, writes: Sequence[Write], delays_s: Sequence[float] | None = None) -> bool:
        """Write the queued files and these, and return whether all are written now; else `must_wait` blocks the run."""
        if not self._queue.flush(writes, RETRY_DELAYS_S if delays_s is None else delays_s):
            if not self._is_waiting:  # otherwise it is reported already
                self.failures.report(self._queue.obstacle)
            return False
        if self._has_owed_models:
            self._has_owed_models = False
            self.full_models.write_owed()
        if self.mirror is not None:
            self.mirror.update()
        return True

    def _write_or_raise(self, writes: Sequence[Write]) -> None:
        if not self.write(writes):
            raise RunDirectoryUnavailable(
                message(
                    "the run is complete and saved in {latest}, but not all of its files: {obstacle}",
                    latest=self.files.latest,
                    obstacle=self._queue.obstacle,
                ),
                message("Make room or fix the cause and run again: only the last files are written then"),
            )

    def _write_step_checkpoint(self, checkpoint: Checkpoint) -> None:
        target = self.files.step_checkpoint(checkpoint.progress.step)

        def write() -> None:
            save_checkpoint(checkpoint, target)
            if self.settings.kept is not None:
                for path in self.files.step_checkpoints()[self.settings.kept :]:
                    path.unlink(missing_ok=True)

        if (error := retry(write, RETRY_DELAYS_S)) is not None:
            self.failures.report(f"{target} could not be written and is left out ({reason_of(error)})")

    def _plot(self) -> None:
        try:
            rows = tracking.read_metrics(self.files.local_metrics)
            for name, plot in tracking.pictures_of(rows).items():
                with storage.publish(storage.as_path(self.files.stage / name)) as path:
                    plot(rows, path)
        except Exception as error:  # a plot must not end a run
            raise_if_interrupted(error)
            self.failures.report(f"the pictures of metrics.jsonl could not be drawn ({reason_of(error)})")
        self._drawn_at = time.monotonic()

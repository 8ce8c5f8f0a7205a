"""Full models: base and adapter merged, 6.2 GB each for musicgen-large, written in the background.

A run may be killed before a full model is written. Its source, a checkpoint of some hundred MB, therefore lies in
`owed/` until then, and a run that resumes writes the owed models first.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from upath import UPath

from musicgen_core import storage, tensor_files
from musicgen_core.errors import AdapterError, RunDirectoryError, RunDirectoryUnavailable, reason_of
from musicgen_core.language import message
from musicgen_core.model.adapters import Adapter, load_adapter
from musicgen_core.model.lora import merged_checkpoint
from musicgen_core.model.weights import BaseModel
from musicgen_core.run_layout import BEST_ADAPTER, BEST_MODEL, FINAL_MODEL, LATEST_ADAPTER
from musicgen_core.training.files.background import RETRY_DELAYS_S, Abandoned, Background, Failures, retry
from musicgen_core.training.files.checkpoint import Checkpoint, load_checkpoint
from musicgen_core.training.files.run_directory import RunDirectory

logger = logging.getLogger(__name__)
_MOST_FAILED = 2


class FullModels:
    """Writes the full models of one run directory.

    Args:
        keep_last: how many of the newest `checkpoint_epoch_*.pt` are kept; None keeps all.
    """

    def __init__(self, files: RunDirectory, model: BaseModel, keep_last: int | None, failures: Failures) -> None:
        self.files, self.model, self.keep_last = files, model, keep_last
        self.failures = failures
        self.background = Background("full models", failures)
        self._is_failing = False  # as of the last retry

    def write_owed(self) -> None:
        """Write in the background all models that `owed/` holds, including those that failed before."""
        self.background.submit_unless_waiting("full models could not be written", self._write_owed)

    def write_final(self, adapter: Adapter) -> None:
        """Write `final_model.pt` in the foreground.

        Raises:
            RunDirectoryError: it can't be written.
        """
        target = self.files.full_model(FINAL_MODEL)
        error = retry(
            lambda: write_full_model(merged_checkpoint(self.model, adapter), target, self.background.stopping),
            () if self._is_failing else RETRY_DELAYS_S,
        )
        if error is not None:
            raise RunDirectoryUnavailable(
                message(
                    "the run is complete and saved in {latest}, but {target} can't be written ({reason}); the "
                    "final adapter is {lora}",
                    latest=self.files.latest,
                    target=target,
                    reason=reason_of(error),
                    lora=self.files.adapter(LATEST_ADAPTER),
                ),
                message("Make room or fix the cause and run again: only the last files are written then"),
            ) from error

    def _write_owed(self) -> None:
        """Write the owed models, the oldest first.

        Only the first failure is retried with delays, and after two in a row the rest is postponed: with twenty models
        and a full disk, retries would delay a finished run by half an hour.
        """
        failed, left = 0, 0
        for owed in reversed(self.files.owed_checkpoints()):
            if self.background.stopping.is_set():
                raise Abandoned
            if failed == _MOST_FAILED:
                left += 1
                continue
            try:
                checkpoint = load_checkpoint(owed)
            except RunDirectoryError as error:
                logger.warning("%s; the full models that it stands for are left out", error)
                if not isinstance(error.__cause__, OSError):  # an OSError may be transient
                    owed.unlink(missing_ok=True)
                continue
            failure = self.background.retry(partial(self._write, checkpoint, owed), is_once=self._is_failing)
            self._is_failing, failed = failure is not None, failed + 1 if failure is not None else 0
            if failure is not None:
                self.failures.report(
                    f"{_names(checkpoint)} could not be written ({reason_of(failure)}): "
                    "it is tried again with the next ones, at the end of the run and when it is resumed"
                )
        if left:
            logger.warning("after these, the full models of %d later checkpoints were not tried", left)

    def _write(self, checkpoint: Checkpoint, owed: UPath) -> None:
        """Write the models that a checkpoint owes, and delete its file, `owed`."""
        names = [name for name in checkpoint.owed if name != BEST_MODEL or self._is_best(checkpoint)]
        merged: tuple[Adapter, dict[str, Any]] | None = None
        for name in names:
            adapter = checkpoint.best if name == BEST_MODEL else checkpoint.learned
            assert isinstance(adapter, Adapter), "models that are trained whole are not owed"
            if merged is None or merged[0] is not adapter:
                merged = adapter, merged_checkpoint(self.model, adapter)
            resume = {} if name == BEST_MODEL else {"resume": replace(checkpoint, owed=[]).to_plain()}
            write_full_model({**merged[1], **resume}, self.files.full_model(name), self.background.stopping)
        owed.unlink(missing_ok=True)
        if storage.is_local(owed):
            with suppress(OSError):  # not empty, or the trainer is about to write there
                Path(str(owed.parent)).rmdir()
        self.delete_older()

    def delete_older(self) -> None:
        """Delete all but the newest of `checkpoint_epoch_*.pt`, if only those are kept."""
        if self.keep_last is not None:
            for path in self.files.epoch_models()[self.keep_last :]:
                path.unlink(missing_ok=True)

    def _is_best(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint is still the best: a later epoch may have been better."""
        try:
            return load_adapter(self.files.adapter(BEST_ADAPTER)).global_step == checkpoint.learned.global_step
        except (AdapterError, OSError):
            return True


def _names(checkpoint: Checkpoint) -> str:
    return ", ".join(f"{name}.pt" for name in checkpoint.owed)


def write_full_model(values: dict[str, Any], target: UPath, stopping: Event) -> None:
    """Save a full model atomically; stop between two chunks once `stopping` is set.

    Raises:
        Abandoned: `stopping` was set; no partial file is left.
    """

    def check() -> None:
        if stopping.is_set():
            raise Abandoned

    with storage.publish(target) as path:
        tensor_files.save(values, path, check)
        check()  # before an upload, which can't be interrupted

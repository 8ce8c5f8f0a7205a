"""A mirror of the essential files of a run directory, updated while the run continues."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError, RunDirectoryError, raise_if_interrupted, reason_of
from musicgen_core.language import message
from musicgen_core.run_layout import (
    BEST_ADAPTER,
    BEST_MODEL,
    EMA_ADAPTER,
    EMA_MODEL,
    FINAL_ADAPTER,
    FINAL_MODEL,
    LATEST_ADAPTER,
    LOSS_PLOT,
    METRICS,
    run_of,
)
from musicgen_core.training.files.background import Abandoned, Background, Failures
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.files.run_lock import RunLock

logger = logging.getLogger(__name__)

_ON_EXIT_S = 10.0
"""How long an interrupted run waits for its last copy; Prefect kills it after 30 s."""


class Mirror:
    """Copies of adapters, config.json, metrics.jsonl, loss.png and latest.pt; its failures never end a run.

    Files of later steps, left in the mirror from before the run went back to an earlier checkpoint, are set aside as in
    a run directory before anything is copied. A location that another run or another program wrote to is refused.

    Args:
        step: the step that this run starts or resumes after.
        epochs: epochs done at that step.
        run_id: the run's id in config.json; None if it was lost: an existing mirror then stays untouched, and the run
            continues without one.
        copies_models: whether full models are what the run learns (`train all`), in place of adapters.

    Raises:
        ConfigError: the mirror would lie in the run directory itself.
        RunDirectoryError: the location belongs to another run.
    """

    def __init__(
        self,
        files: RunDirectory,
        target: UPath,
        failures: Failures,
        step: int,
        epochs: int,
        run_id: str | None,
        copies_models: bool = False,
    ) -> None:
        if files.root == target or files.holds(target):
            raise ConfigError(
                message("copy_to {target} lies in the run directory {root}", target=target, root=files.root),
                message("Give another location"),
            )
        self.files, self.target, self._copies_models = files, target, copies_models
        self._directory, self._run_id = RunDirectory(target, files.stage), run_id
        self._lock: RunLock | None = None
        with self._reachable():
            self._check_own()
        self.background = Background("second copy", failures)
        self._copied: dict[str, str] = {}
        self._starts_after: tuple[int, int] | None = (step, epochs)

    def claim(self) -> None:
        """Lock the mirror until `release`.

        Raises:
            RunDirectoryError: another run holds the lock, or the location belongs to another run.
        """
        with self._reachable():
            self._claim()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.hold_for([self.background.thread])
            self._lock.__exit__(None, None, None)

    def update(self) -> None:
        """Copy changed files in the background; a queued copy takes the files as they are when it runs."""
        what = f"the copy in {self.target} could not be brought up to date; the next save tries again"
        self.background.submit_unless_waiting(what, self._copy)

    def finish(self) -> None:
        self.update()
        self.background.drain()

    def abandon(self) -> None:
        """Wait some seconds for the last copy to end, then abandon it."""
        deadline = time.monotonic() + _ON_EXIT_S

        def check() -> None:
            if time.monotonic() > deadline:
                raise TimeoutError

        try:
            self.background.drain(check)
        except TimeoutError:
            self.background.abandon()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        """Log and ignore errors of the storage: it may be reachable at the next save."""
        try:
            yield
        except Exception as error:  # storages raise many kinds
            raise_if_interrupted(error)
            if isinstance(error, RunDirectoryError) and self._run_id is not None:
                raise
            logger.warning("the location of the copy, %s, can't be used yet (%s)", self.target, reason_of(error))

    def _claim(self) -> None:
        lock = RunLock(self.target)
        lock.__enter__()
        try:
            self._check_own()
        except BaseException:
            lock.__exit__(None, None, None)
            raise
        self._lock = lock
        self._directory.delete_partials()

    def _check_own(self) -> None:
        self._directory.check_own()
        config = self._directory.read_config()
        owner = None if config is None else config.wandb_id or None
        if (config is not None or self._directory.has_training()) and owner != self._run_id:
            raise RunDirectoryError(
                message(
                    "--copy-to {target} holds another run (its config.json says wandb_id {owner}, this run's "
                    "is {value})",
                    target=self.target,
                    owner=owner,
                    value=self._run_id or "not known",
                ),
                message("Give a directory of its own for the copy, or move what is there away"),
            )

    def _copy(self) -> None:
        if self._lock is None:
            self._claim()
        assert self._lock is not None
        self._lock.check()
        if self._starts_after is not None:
            self._directory.set_aside_after(*self._starts_after)
            self._starts_after = None
        with storage.scratch_folder() as scratch:
            # Read before the other files and published after them, so that a run can resume from the mirror.
            latest, version = self.files.latest, self._changed(self.files.latest)
            if version is not None:
                with storage.staged(latest) as local:
                    shutil.copyfile(local, scratch / latest.name)
            for source in self._sources():
                if (changed := self._changed(source)) is not None:
                    with storage.staged(source) as local:
                        self._upload(local, source, changed)
            if version is not None:
                self._upload(scratch / latest.name, latest, version)

    def _sources(self) -> list[UPath]:
        local = [storage.as_path(self.files.stage / name) for name in (METRICS, LOSS_PLOT)]
        adapters = (BEST_ADAPTER, FINAL_ADAPTER, LATEST_ADAPTER, EMA_ADAPTER)
        learned = list(map(self.files.adapter, adapters))
        if self._copies_models:
            learned = list(map(self.files.full_model, (BEST_MODEL, FINAL_MODEL, EMA_MODEL)))
        return [self.files.config, *local, *learned]

    def _changed(self, source: UPath) -> str | None:
        """Return the version of a file that the mirror doesn't have yet, or None."""
        version = storage.version_of(source) if source.exists() else None
        return version if version != self._copied.get(str(source)) else None

    def _upload(self, local: Path, source: UPath, version: str) -> None:
        if self.background.stopping.is_set():
            raise Abandoned
        folder = self.target / source.parent.name if run_of(source) is not None else self.target
        storage.upload(local, folder / source.name)
        self._copied[str(source)] = version

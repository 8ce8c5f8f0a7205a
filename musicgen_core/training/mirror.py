"""A second copy of what matters of a run directory, kept up while the training goes on."""

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
from musicgen_core.run_layout import ADAPTERS, BEST_ADAPTER, FINAL_ADAPTER, LATEST_ADAPTER, LOSS_PLOT, METRICS, run_of
from musicgen_core.training.background import Abandoned, Background, Failures
from musicgen_core.training.run_directory import RunDirectory
from musicgen_core.training.run_lock import RunLock

logger = logging.getLogger(__name__)

_ON_EXIT_S = 10.0
"""How long an interrupted training waits for its last copy; Prefect kills after 30 s."""


class SecondCopy:
    """Copies of adapters, config.json, metrics.jsonl, loss.png and latest.pt. Its troubles never end a training.

    What is in the copy of later steps, from before the training went back, is set aside in it as in a run directory,
    before anything is copied. A place where another run or another program has written is refused.

    Args:
        step: after which this training begins or goes on, with
        epochs: done.
        run_id: that of config.json; None: it was lost, so a copy that is there is not touched, and the run continues
            without one.

    Raises:
        ConfigError: the copy is to lie in the run directory itself.
        RunDirectoryError: the place is not this run's.
    """

    def __init__(
        self, files: RunDirectory, target: UPath, failures: Failures, step: int, epochs: int, run_id: str | None
    ) -> None:
        if files.root == target or files.holds(target):
            raise ConfigError(
                message("copy_to {target} lies in the run directory {root}", target=target, root=files.root),
                message("Give another place"),
            )
        self.files, self.target = files, target
        self._there, self._run_id = RunDirectory(target, files.stage), run_id
        self._lock: RunLock | None = None
        with self._reachable():
            self._check_own()
        self.background = Background("second copy", failures)
        self._copied: dict[str, str] = {}
        self._begins_after: tuple[int, int] | None = (step, epochs)

    def claim(self) -> None:
        """Keep others from writing there until `release`.

        Raises:
            RunDirectoryError: another run does, or the place is not this run's.
        """
        with self._reachable():
            self._claim()

    def release(self) -> None:
        if self._lock is not None:
            self._lock.hold_for([self.background.thread])
            self._lock.__exit__(None, None, None)

    def update(self) -> None:
        """Copy what changed, soon. Comes back at once: a copy that waits takes the files as they then are."""
        what = f"the copy in {self.target} could not be brought up to date; the next save tries again"
        self.background.submit_unless_waiting(what, self._copy)

    def finish(self) -> None:
        self.update()
        self.background.drain()

    def abandon(self) -> None:
        """Let the last copy end, for some seconds."""
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
        """A storage that can't be reached now may be at the next save."""
        try:
            yield
        except Exception as error:  # storages raise many kinds
            raise_if_interrupted(error)
            if isinstance(error, RunDirectoryError) and self._run_id is not None:
                raise
            logger.warning("the place of the copy, %s, can't be used yet (%s)", self.target, reason_of(error))

    def _claim(self) -> None:
        lock = RunLock(self.target)
        lock.__enter__()
        try:
            self._check_own()
        except BaseException:
            lock.__exit__(None, None, None)
            raise
        self._lock = lock
        self._there.delete_partials()

    def _check_own(self) -> None:
        self._there.check_own()
        config = self._there.read_config()
        owner = None if config is None else config.wandb_id or None
        if (config is not None or self._there.has_training()) and owner != self._run_id:
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
        if self._begins_after is not None:
            self._there.set_aside_after(*self._begins_after)
            self._begins_after = None
        with storage.scratch_folder() as scratch:
            # As it is before the others are read and in its place after them: a copy can be resumed from, too.
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
        return [self.files.config, *local, *(map(self.files.adapter, (BEST_ADAPTER, FINAL_ADAPTER, LATEST_ADAPTER)))]

    def _changed(self, source: UPath) -> str | None:
        """The version of a file that is not in the copy yet."""
        version = storage.version_of(source) if source.exists() else None
        return version if version != self._copied.get(str(source)) else None

    def _upload(self, local: Path, source: UPath, version: str) -> None:
        if self.background.stopping.is_set():
            raise Abandoned
        folder = self.target / ADAPTERS if run_of(source) is not None else self.target
        storage.upload(local, folder / source.name)
        self._copied[str(source)] = version

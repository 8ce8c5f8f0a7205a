"""A second copy of what matters of a run directory, kept up while the training goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.training.background import Abandoned, Background, Failures
from musicgen_core.training.run_directory import RunDirectory

_ON_EXIT_S = 10.0
"""How long an interrupted training waits for its last copy; Prefect kills after 30 s."""


class SecondCopy:
    """Copies of adapters, config.json, metrics.jsonl, loss.png and latest.pt. Its troubles never end a training.

    What is in the copy of later steps, from before the training went back or from another one, is set aside in it as
    in a run directory, before anything is copied.

    Args:
        step: after which this training begins or goes on, with
        epochs: done.

    Raises:
        ConfigError: the copy is to lie in the run directory itself.
    """

    def __init__(self, files: RunDirectory, target: UPath, failures: Failures, step: int, epochs: int) -> None:
        if files.root == target or files.holds(target):
            raise ConfigError(f"copy_to {target} lies in the run directory {files.root}", "Give another place")
        self.files, self.target = files, target
        self.background = Background("second copy", failures)
        self._copied: dict[str, str] = {}
        self._begins_after: tuple[int, int] | None = (step, epochs)

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

    def _copy(self) -> None:
        if self._begins_after is not None:
            RunDirectory(self.target, self.files.stage).set_aside_after(*self._begins_after)
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
        local = [storage.as_path(self.files.stage / name) for name in ("metrics.jsonl", "loss.png")]
        return [self.files.config, *local, *(self.files.lora(f"{kind}_lora") for kind in ("best", "final", "latest"))]

    def _changed(self, source: UPath) -> str | None:
        """The version of a file that is not in the copy yet."""
        version = storage.version_of(source) if source.exists() else None
        return version if version != self._copied.get(str(source)) else None

    def _upload(self, local: Path, source: UPath, version: str) -> None:
        if self.background.stopping.is_set():
            raise Abandoned
        is_adapter = source.parent.name == "lora_weights"
        storage.upload(local, (self.target / "lora_weights" if is_adapter else self.target) / source.name)
        self._copied[str(source)] = version

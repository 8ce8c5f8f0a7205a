"""Log a run to WandB without affecting the job: everything that may fail or block happens in a thread."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import queue
import secrets
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import raise_if_interrupted
from musicgen_core.escaping import one_line
from musicgen_core.language import message
from musicgen_core.stages import announce
from musicgen_core.tracking import wandb_service

logger = logging.getLogger(__name__)
PROJECT = "musicgen-flows"
URL_FILE = "run-url"
"""File in WandB's folder with the page of an online run, for other processes"""
ID_FILE = "run-id"
"""File in WandB's folder with the run's id, for resuming the same job"""
LOGGED_FILE = "logged.json"
"""File in WandB's folder with the digests of logged files, by name"""
INIT_SECONDS = 20.0
FINISH_SECONDS = 120.0
"""Timeout of uploads at the end of a job. WandB's own variables override timeouts: WANDB_INIT_TIMEOUT, …"""
NOTICING_SECONDS = 30.0
"""Additional timeout for failures: WandB takes 15 s to detect one of an artifact; then an offline run starts."""
INTERRUPTED_SECONDS = 15.0
"""Total timeout after an interruption: Prefect kills the process after 30 s"""


@dataclass(frozen=True)
class AudioFile:
    """A wav to log, with its caption."""

    path: Path
    caption: str


class Wandb:
    """A WandB run under a folder: online with WANDB_API_KEY in the environment, else offline.

    A thread sends everything in order, so only `finish` waits for WandB, and WandB's errors are never raised. A run
    that loses its connection continues offline without losing data: `wandb sync` uploads it later.

    Args:
        folder: parent directory of `wandb/`.
        run_id: id of the run, the same for every part of a job, so that a resumed job continues its run.
        name: display name of the run.
        job_type: `train` or `tokenize`.
        config: settings to show with the run.
        axis: metric for the x axis. WandB's own steps restart at 0 when an offline run is resumed.
        home: final location of `folder`, if that is a stage for a remote one.

    Attributes:
        url: URL of the run's page, if it is known already.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        name: str,
        job_type: str,
        config: Mapping[str, Any],
        axis: str = "global_step",
        home: UPath | None = None,
    ) -> None:
        self._data = folder / "wandb"
        home = home or storage.as_path(folder)
        self._is_stage = not storage.is_local(home)
        self._home = home
        self._how_to_sync = (
            message(
                "To upload it later, beside a copy of {home}/wandb:\n{command}",
                home=home,
                command=sync_command("wandb"),
            )
            if self._is_stage
            else message("To upload it later:\n{command}", command=sync_command(self._data))
        )
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._run: Any = None
        self.url: str | None = None
        self._misses_samples = False
        mode = wandb_service.mode_of_environment()
        if mode == "disabled":
            return
        if mode == "offline":
            why = message("no {variable} is set", variable=wandb_service.KEY)
            if os.environ.get("WANDB_MODE"):
                why = message("WANDB_MODE says so")
            logger.info("WandB runs offline: %s. %s", why, self._how_to_sync)
        self._mode, self._axis = mode, axis
        self._hidden = wandb_service.KEY
        self._logged = _read_json(home / "wandb" / LOGGED_FILE)
        self._init: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "id": run_id,
            "name": one_line(name),
            "job_type": job_type,
            "config": dict(config),
            "dir": folder,
            "resume": "allow",
            "allow_val_change": True,  # the settings of a resumed run may differ
        }
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    @property
    def is_on(self) -> bool:
        """Return False if WandB is disabled and logging has no effect."""
        return self._thread is not None

    def log(self, values: Mapping[str, Any]) -> None:
        self._do(lambda: self._run.log(dict(values)))

    def log_audio(self, name: str, values: Mapping[str, Any], clips: Mapping[str, AudioFile]) -> None:
        """Log wavs by key together with `values`, unless the same ones have been logged as `name`.

        Raises:
            OSError: a wav can't be read.
        """
        if self._thread is None:
            return
        digest = _digest((clip.path for clip in clips.values()), [clip.caption for clip in clips.values()])
        if self._logged.get(name) != digest:
            self._do(partial(self._send_audio, name, digest, dict(values), dict(clips)))

    def log_adapter(self, file: Path, alias: str, metadata: Mapping[str, Any]) -> None:
        """Log LoRA weights as a new version of this run's artifact, unless `alias` already refers to them.

        Raises:
            OSError: the file can't be read, or the disk has no space for a copy.
        """
        if self._thread is None:
            return
        digest = _digest([file])
        if self._logged.get(alias) == digest:
            return
        # A permanent copy: an offline run uploads it only when it is synced, and `file` may be replaced until then.
        copy = self._data / "adapters" / f"{alias}-{digest[:12]}{file.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        self._do(partial(self._send_adapter, copy, file.name, alias, {**metadata, "sha256": digest}))

    def finish(self, exit_code: int = 0, is_interrupted: bool = False) -> None:
        """Wait until everything is sent, with a timeout that is shorter for an interrupted job."""
        if self._thread is None:
            return
        is_online = self._mode == "online"
        announce(message("sending WandB the rest of the metrics") if is_online else message("closing WandB's files"))
        self._calls.put(partial(self._finish, exit_code))
        self._calls.put(None)
        patience = _seconds("WANDB_FINISH_TIMEOUT", FINISH_SECONDS) + NOTICING_SECONDS
        self._thread.join(INTERRUPTED_SECONDS if is_interrupted else patience)
        if self._thread.is_alive():
            self._mode = "lost"
            logger.warning("WandB does not come to an end and is left alone. %s", self._how_to_sync)
            wandb_service.end_service()

    # In the thread

    def _do(self, call: Callable[[], None]) -> None:
        if self._thread is not None:
            self._calls.put(call)

    def _work(self) -> None:
        self._attempt(lambda: None)
        for call in iter(self._calls.get, None):
            self._attempt(call)

    def _attempt(self, call: Callable[[], None]) -> None:
        """Make a call in the current run, or in an offline run if that fails."""
        while self._mode != "lost":
            try:
                if self._run is None:
                    self._start()
                call()
                return
            except Exception as error:
                self._fail(error)

    def _start(self) -> None:
        import wandb

        settings = wandb.Settings(
            silent=True,
            console="off",
            reinit="create_new",
            init_timeout=_seconds("WANDB_INIT_TIMEOUT", INIT_SECONDS),
            finish_timeout=_seconds("WANDB_FINISH_TIMEOUT", FINISH_SECONDS),
            finish_timeout_raises=True,
        )
        if self._mode != "offline":
            wandb_service.check_key()
        self._await_own_second()
        with wandb_service.without_variables(self._hidden) if self._mode == "offline" else nullcontext():
            run = wandb.init(mode=self._mode, settings=settings, **self._init)  # type: ignore[arg-type]
        run.define_metric(self._axis)
        run.define_metric("*", step_metric=self._axis)
        self._run = run
        self._keep(ID_FILE, self._init["id"])
        if self._mode != "offline" and run.url:
            self._keep(URL_FILE, run.url)
            self.url = run.url

    def _await_own_second(self) -> None:
        """Wait until a second in which no part of this run began that has been uploaded already.

        WandB names a part's folder by its second, and sees only those in the stage.
        """
        parts = self._home / "wandb"
        while self._is_stage and any(parts.glob(f"*-{datetime.now():%Y%m%d_%H%M%S}-{self._init['id']}")):
            time.sleep(0.1)

    def _fail(self, error: Exception) -> None:
        was_started, self._run = self._run is not None, None
        if self._mode == "lost":  # it has been abandoned
            return
        if self._mode != "offline":
            self._mode = "offline"
            logger.warning(
                "WandB continues offline: it can't be reached, or refuses the key (%s). Check WANDB_API_KEY, "
                "WANDB_PROJECT and the network. %s",
                error,
                self._how_to_sync,
            )
        elif not was_started and self._hidden == wandb_service.KEY:
            self._hidden, self._init["project"] = "WANDB_", PROJECT
            logger.warning("WandB can't start offline with its variables (%s): it is tried without them", error)
        else:
            self._mode = "lost"
            logger.warning("WandB failed and is left out from here on (%s); metrics.jsonl has everything", error)
        wandb_service.teardown(1)  # otherwise this process can't start another run with this id

    def _send_audio(self, name: str, digest: str, values: dict[str, Any], clips: dict[str, AudioFile]) -> None:
        import wandb

        try:
            audio = {key: wandb.Audio(str(clip.path), caption=one_line(clip.caption)) for key, clip in clips.items()}
            self._run.log({**values, **audio})  # copies them
        except (ConnectionError, TimeoutError):  # WandB's service is gone
            raise
        except (OSError, ValueError) as error:  # a mounted Drive may refuse the copy's mode
            log = logger.info if self._misses_samples else logger.warning
            log("WandB misses the %s (%s)", name, error)
            self._misses_samples = True
            return
        self._note(name, digest)

    def _send_adapter(self, copy: Path, name: str, alias: str, metadata: dict[str, Any]) -> None:
        import wandb

        artifact = wandb.Artifact(f"lora-{self._init['id']}", type="model", metadata=metadata)
        entry = artifact.add_file(str(copy), name, policy="immutable", skip_cache=True)
        if self._is_stage and self._mode == "offline":
            entry.local_path = f"wandb/adapters/{copy.name}"  # relative, as `wandb sync` runs after the stage is gone
        self._run.log_artifact(artifact, aliases=[alias])
        self._note(alias, metadata["sha256"])

    def _note(self, name: str, digest: str) -> None:
        self._logged[name] = digest
        self._keep(LOGGED_FILE, json.dumps(self._logged, indent=1))

    def _keep(self, name: str, text: str) -> None:
        with suppress(OSError):
            storage.write_text(storage.as_path(self._data / name), text)

    def _finish(self, exit_code: int) -> None:
        settings, trouble = self._run.settings, None
        try:
            self._run.finish(exit_code=exit_code)
        except Exception as error:
            trouble = str(error)
        wandb_service.teardown(exit_code)  # finish() returns before an offline run's file is written
        if self._mode == "lost":  # it has been abandoned, which was logged
            return
        trouble = trouble or wandb_service.trouble_of(Path(settings.log_internal), self._mode)
        if trouble and self._mode == "offline":
            logger.warning("WandB's files lack a part of the run (%s); metrics.jsonl has everything", trouble)
        elif trouble:
            logger.warning("WandB has not got everything (%s). %s", trouble, self._how_to_sync)
        elif self._mode == "online":
            wandb_service.mark_as_synced(Path(settings.sync_file))


def sync_command(folder: object) -> str:
    """Return the command line that uploads the offline runs in a WandB folder."""
    # By default `wandb sync` skips parts that were online; completely uploaded ones are marked as synced.
    return f"uv run --no-sync wandb sync --no-skip-online {shlex.quote(str(folder))}"


def kept_run_id(home: UPath) -> str:
    """Return the id of the WandB run under `home`, or a new one."""
    return _read(home / "wandb" / ID_FILE) or secrets.token_hex(4)


def stored_url(home: UPath) -> str | None:
    """Return the URL of the page of the WandB run under `home`, if it has one."""
    return _read(home / "wandb" / URL_FILE)


def _read(path: UPath) -> str | None:
    try:
        return storage.read_text(storage.as_path(path)).strip()
    except Exception as error:  # storages raise many kinds, and none should fail the job
        raise_if_interrupted(error)
        return None


def _read_json(path: UPath) -> dict[str, str]:
    try:
        return dict(json.loads(_read(path) or "{}"))
    except (ValueError, TypeError):
        return {}


def _digest(files: Iterable[Path], texts: Iterable[str] = ()) -> str:
    whole = hashlib.sha256("\n".join(texts).encode())
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()


def _seconds(variable: str, default: float) -> float:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return default

"""WandB's service process, environment variables and files, as far as its Python API doesn't cover them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from musicgen_core.process import drop_empty

logger = logging.getLogger(__name__)
KEY = "WANDB_API_KEY"
KILLED_WITHIN_S = 5.0
_TROUBLE = {
    "online": ("filestream: ", "runfiles: ", "fileTransfer: ", "sender: failed"),  # not received by the server
    "offline": ("writer: failed",),  # not in the file; online the server receives it all the same
}
"""Prefixes of errors in WandB's run log that mean lost data. Retried requests are not among them."""


def check_key() -> None:
    """Raise a RuntimeError if WandB would prompt for a key, which in a thread would end the process."""
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # otherwise login prints the account, which it asks the server for
    if not wandb.login(verify=False, prompt=False):
        raise RuntimeError(f"there is no key: neither {KEY} nor one that `wandb login` has kept")


def mode_of_environment() -> str:
    """Return online, offline, shared or disabled, by WandB's variables; an unknown WANDB_MODE means offline."""
    drop_empty("WANDB_")
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get(KEY) else "offline")
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # deprecated names
    if mode not in ("online", "offline", "shared", "disabled"):
        logger.warning("there is no WANDB_MODE %r, only online, offline and disabled: WandB runs offline", mode[:50])
        return "offline"
    return mode


@contextmanager
def without_variables(prefix: str) -> Iterator[None]:
    """Hide variables while an offline run starts: WandB reads them anyway, and raises if one is malformed."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def trouble_of(log: Path, mode: str) -> str | None:
    """Return the last error in WandB's run log that means lost data, or None. `finish` doesn't report these.

    After a revoked key ends the upload, or a full disk the writing, the run still seems to finish successfully.
    """
    with suppress(OSError):
        for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if entry["level"].startswith("ERROR") and entry["msg"].startswith(_TROUBLE.get(mode, ())):
                    return " ".join(entry["msg"].split())[:300]
    return None


def mark_as_synced(file: Path) -> None:
    """Write the marker by which `wandb sync` skips a file that has been uploaded."""
    with suppress(OSError):
        file.with_suffix(".wandb.synced").touch()


def end_service() -> None:
    """End wandb-core, for which this process would wait at exit. Its data remain in its files."""
    for process in _service_processes():
        with suppress(psutil.Error):
            process.kill()
            process.wait(KILLED_WITHIN_S)
    teardown(1)  # also removes its atexit hook


def teardown(exit_code: int) -> None:
    """End WandB in this process. WandB calls `exit` if its service failed, which must not end the job."""
    with suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown(exit_code)  # not imported here: another thread may be stuck importing it
    for process in _service_processes():
        with suppress(psutil.Error):
            process.wait(0)  # WandB doesn't reap a killed one, which would remain a zombie


def _service_processes() -> Iterator[psutil.Process]:
    for process in psutil.Process().children():
        with suppress(psutil.Error):  # it has just ended
            if process.name() == "wandb-core":
                yield process

"""What WandB's own program and files are asked and told, beside its Python interface."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from musicgen_core.environment import drop_empty

logger = logging.getLogger(__name__)
KEY = "WANDB_API_KEY"
KILLED_WITHIN_S = 5.0
_TROUBLE = {
    "online": ("filestream: ", "runfiles: ", "fileTransfer: ", "sender: failed"),  # what the server has not got
    "offline": ("writer: failed",),  # what the file has not got; online the server has it all the same
}
"""How errors begin, in WandB's log of a run, that cost a part of it. Requests that were repeated are not among them."""


def check_key() -> None:
    """Raises RuntimeError: WandB would ask for a key at the terminal. In a thread that is the end of the process."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup().settings.base_url
    if wbauth.authenticate_session(host=host, source="wandb.init()", prompt=False, update_session=False) is None:
        raise RuntimeError(f"there is no key: neither {KEY} nor one that `wandb login` has kept")


def mode_of_environment() -> str:
    """Return online, offline, shared or disabled, as WandB's variables say; an unknown WANDB_MODE means offline."""
    drop_empty("WANDB_")
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get(KEY) else "offline")
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # as they were called once
    if mode not in ("online", "offline", "shared", "disabled"):
        logger.warning("there is no WANDB_MODE %r, only online, offline and disabled: WandB runs offline", mode[:50])
        return "offline"
    return mode


@contextmanager
def without_variables(prefix: str) -> Iterator[None]:
    """Hide variables while an offline run starts: WandB reads them all the same, and raises if one is malformed."""
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(prefix)}
    try:
        yield
    finally:
        os.environ.update(hidden)


def trouble_of(log: Path, mode: str) -> str | None:
    """The last error that cost a part of a run, from WandB's log of it: `finish` says nothing of them.

    A key that is revoked in the middle ends the uploading, a full disk the writing, and the run seems to end well.
    """
    with suppress(OSError):
        for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if entry["level"].startswith("ERROR") and entry["msg"].startswith(_TROUBLE.get(mode, ())):
                    return " ".join(entry["msg"].split())[:300]
    return None


def mark_as_synced(file: Path) -> None:
    """Leave the mark that `wandb sync` leaves beside a part it has uploaded, and by which it passes it over."""
    with suppress(OSError):
        file.with_suffix(".wandb.synced").touch()


def end_service() -> None:
    """End wandb-core, for which this process would wait when it exits. What it has is in its files."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if process.name() == "wandb-core":
                process.kill()
                process.wait(KILLED_WITHIN_S)
    teardown(1)  # its hook at exit goes with it


def teardown(exit_code: int) -> None:
    """End WandB in this process. It exits where its own service didn't end well, and the job is not to end with it."""
    core = None
    with suppress(AttributeError, KeyError):  # it has not begun, or is of another version
        core = sys.modules["wandb.sdk.wandb_setup"]._singleton._connection._proc._process
    with suppress(Exception, SystemExit):
        sys.modules["wandb"].teardown(exit_code)  # not imported here: another thread may be stuck in doing so
    if core is not None:
        core.poll()  # WandB does not wait for a wandb-core that was killed, which would stay a zombie

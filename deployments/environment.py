"""The environment variables that the command line relies on. Import this before Prefect."""

from __future__ import annotations

import codecs
import http.client
import io
import logging
import os
import sys
import unicodedata
import urllib.request
from pathlib import Path

from musicgen_core.process import drop_empty

ROOT = Path(__file__).resolve().parent.parent
LOCAL_API = "http://127.0.0.1:4200/api"

LOOPBACK = ("127.0.0.1", "localhost", "::1")

DEFAULTS = {
    # The first start with a new PREFECT_HOME migrates a database: 20 s and more on a small machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # No telemetry is sent. On a fresh database it would also fail with "database is locked".
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # Prefect's newer UI removes <audio> from pages, so that no music plays. A browser that has chosen it keeps it.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    # The UI shows the core's logs on the page of their run.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "musicgen_core",
    # The core also logs outside of runs, and in threads without a run.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # Automations keep their state while the server is down: a run may have died with it.
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
    # Seconds between heartbeats, the minimum that Prefect allows. deployments/automations.yaml relies on it.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


_CONSOLE_LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
INTERNAL_LEVEL = "PREFECT_INTERNAL_LOGGING_LEVEL"
"""Log level of the threads that send events and logs: each one lost to a stopped server would print a page."""


def prepare(quiet: bool = False) -> None:
    """Set the defaults of this process's environment, and so of its children. Variables that are set are kept.

    Args:
        quiet: keep Prefect's logs and tracebacks off the terminal, which shows progress. The UI has all of them.
    """
    drop_empty("PREFECT_", "WANDB_", "HF_", "MUSICGEN_", "OMP_NUM_THREADS", "TMPDIR")
    _exempt_loopback_from_proxy()
    _shut_out_working_directory()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if quiet:
        os.environ.setdefault(_CONSOLE_LEVEL, "CRITICAL")
        os.environ.setdefault(INTERNAL_LEVEL, "CRITICAL")
        logging.raiseExceptions = False  # nor is each log record printed that can't be sent to a stopped server


def is_quiet() -> bool:
    """Return whether Prefect's logs are kept off the terminal."""
    return os.environ.get(_CONSOLE_LEVEL) == "CRITICAL"


def print_in_any_encoding() -> None:
    """Print the nearest available character, or a question mark, for one that the output's encoding lacks.

    Also applies to child processes: Prefect draws tables.
    """
    codecs.register_error("musicgen", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="musicgen")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not encoding.lower().startswith("utf"):
        os.environ["PYTHONIOENCODING"] = f"{encoding}:replace"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = unicodedata.normalize("NFKD", error.object[error.start : error.end]).replace("→", "->")
    return text.encode("ascii", "replace").decode(), error.end


def use_local_server() -> None:
    """Use the server of `up` on this machine if it answers and the environment names no other.

    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE=true always selects a temporary server.
    """
    wants_temporary = os.environ.get("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "").lower() in ("1", "true")
    if "PREFECT_API_URL" not in os.environ and not wants_temporary and is_healthy(LOCAL_API):
        os.environ["PREFECT_API_URL"] = LOCAL_API


def _exempt_loopback_from_proxy() -> None:
    """Exempt loopback addresses from the HTTP proxy, which can't reach them. The lower-case variable wins."""
    set_already = [name for name in ("no_proxy", "NO_PROXY") if name in os.environ]
    hosts = ",".join(os.environ[name] for name in set_already[:1])
    if hosts.strip() != "*":
        entries = [entry.strip() for entry in hosts.split(",") if entry.strip()]
        entries += [host for host in LOOPBACK if host not in entries]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(entries)


def _shut_out_working_directory() -> None:
    """Import nothing from the working directory, whose `tokenize.py` or `tasks/` would shadow Python's or ours.

    `python -m` and multiprocessing put it first on the path, and so does an empty entry of PYTHONPATH.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    if path := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path.split(os.pathsep)))
    working_directory = Path.cwd()
    if working_directory != ROOT:
        sys.path[:] = [entry for entry in sys.path if entry and Path(entry) != working_directory]


def is_healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):  # the answer may not be HTTP
        return False

"""Settings of Prefect that the command line relies on. Import this before Prefect."""

from __future__ import annotations

import http.client
import os
import signal
import urllib.request

LOCAL_API = "http://127.0.0.1:4200/api"

DEFAULTS = {
    # The first start with a new PREFECT_HOME migrates a database: 20 s and more on a small machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # Nothing is sent anywhere; on a fresh database telemetry also fails with "database is locked".
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    # Prefect's newer UI takes <audio> out of pages, so that no music plays. Where a browser has chosen it, it stays.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    # What the core logs is shown in the UI with the run that it belongs to.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "musicgen_core",
    # It also works outside of runs, and in threads that belong to none.
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # What automations wait for is not forgotten while the server is away: a run may have died with it.
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
    # A sign of life every so many seconds, the least that Prefect allows; deployments/automations.yaml counts on it.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


_CONSOLE_LEVEL = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"


def prepare(quiet: bool = False) -> None:
    """Put the defaults into the environment where nothing else is set.

    Args:
        quiet: keep Prefect's logs and tracebacks off the terminal, where progress is shown; the UI has all of them.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if quiet:
        os.environ.setdefault(_CONSOLE_LEVEL, "CRITICAL")


def is_quiet() -> bool:
    """Whether Prefect's logs are kept off the terminal."""
    return os.environ.get(_CONSOLE_LEVEL) == "CRITICAL"


def use_local_server() -> None:
    """Use the server that `up` runs on this machine, if one answers there and the environment names no other."""
    if "PREFECT_API_URL" not in os.environ and is_healthy(LOCAL_API):
        os.environ["PREFECT_API_URL"] = LOCAL_API


def has_server() -> bool:
    """Whether a server is configured, in the environment or in Prefect's profile."""
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is not None


def start_temporary_server() -> None:
    """Start the server that Prefect would start by itself without one, but deaf to Ctrl-C and a closed terminal.

    The terminal tells all of its processes, and a run that is interrupted has to tell the server. Prefect stops it when
    this process ends.
    """
    from prefect.server.api.server import SubprocessASGIServer

    deaf_to = {signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, deaf_to)  # which the new process takes over
    try:
        SubprocessASGIServer().start()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, deaf_to)


def is_healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):  # what answers may not be HTTP
        return False

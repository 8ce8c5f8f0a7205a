"""Print what `up`'s child processes print: the errors of its Prefect server, one line each, and its workers' lines."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from typing import IO, Any

from deployments.console import print_line, print_text
from deployments.environment import INTERNAL_LEVEL
from deployments.processes import Part
from musicgen_core.escaping import printable
from musicgen_core.language import say

LOGGING = {
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
    INTERNAL_LEVEL: "ERROR",
}
"""Settings of a server whose log `follow_errors` reads: a JSON object per record, traceback included."""

LOCKED = "database is locked"
"""SQLite lets one writer in at a time. Prefect tries again, so only many of these are worth a line."""
MANY = 8

_STARTED = re.compile(r"Worker '(.+)' started!")
_STOPPING = re.compile(r"Worker '.+' stopped!|Received SIG\w+\. Sending SIG\w+ to .+")
"""Lines that `up` replaces with its own messages when it stops."""


def follow_errors(log: IO[bytes]) -> threading.Thread:
    """Report the errors in a server's log in a daemon thread until the log ends, and close it.

    A broken service fails in each of its loops, every few seconds. The same error is reported the 1st, 2nd, 4th, 8th …
    time.
    """
    thread = threading.Thread(target=_report, args=(log,), daemon=True)
    thread.start()
    return thread


def _report(log: IO[bytes]) -> None:
    times: Counter[str] = Counter()
    hint = say(
        "To try each service of the server: uv run musicgen-flows doctor. To see its whole log: "
        "uv run musicgen-flows up --debug"
    )
    with log:
        for line in log:
            error = describe_record(line.decode(errors="replace").rstrip())
            if not error:
                continue
            kind = re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+", "…", error)
            times[kind] += 1
            if times[kind].bit_count() > 1 or (LOCKED in error and times[kind] < MANY):  # not a power of two
                continue
            again = f" ({times[kind]} times)" if times[kind] > 1 else ""
            print_text(f"Prefect server: {error}{again}", "yellow")
            if hint:
                print_text(hint, "yellow")
                hint = ""  # once


def describe_record(line: str) -> str:
    """Return a log record as one line, without its traceback or SQL. Other lines are returned unchanged."""
    try:
        record: dict[str, Any] = json.loads(line)
        message, arguments = str(record["msg"]), record["args"]
        if arguments:
            message %= tuple(arguments) if isinstance(arguments, list) else arguments
    except (ValueError, KeyError, TypeError):
        return line  # printed and not logged, for example by Python itself
    cause = record.get("exc_info") or {}
    # SQLAlchemy's messages continue with the statement and its parameters.
    text = f"{message}: {cause['type']}: {str(cause['message']).partition('[SQL: ')[0]}" if cause else message
    return " ".join(text.split())


def follow_output(worker: Part) -> threading.Thread:
    """Show a worker's output in a daemon thread until it ends."""
    assert worker.stdout is not None, "it is a pipe"
    thread = threading.Thread(target=_show, args=(worker.stdout,), daemon=True)
    thread.start()
    return thread


def _show(output: IO[bytes]) -> None:
    with output:
        for line in output:
            text = line.decode(errors="replace").strip()
            if started := _STARTED.fullmatch(text):
                print_text(say("Worker {name} is ready", name=started[1]), "dim")
            elif text and not _STOPPING.fullmatch(text):
                print_line(printable(text))

"""Print the output of `up`'s workers in its terminal, in the user's language."""

from __future__ import annotations

import re
import threading
from typing import IO

from deployments.console import print_line, print_text
from deployments.processes import Part
from musicgen_core.escaping import printable
from musicgen_core.language import say

_STARTED = re.compile(r"Worker '(.+)' started!")
_STOPPING = re.compile(r"Worker '.+' stopped!|Received SIG\w+\. Sending SIG\w+ to .+")
"""Lines that `up` replaces with its own messages when it stops."""


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

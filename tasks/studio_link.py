"""A link to the studio on the pages of runs, while it runs.

The studio stores its address in a Prefect variable, and removes it at its end.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import httpx
from prefect import runtime
from prefect.variables import Variable

from musicgen_core.escaping import markdown_link

logger = logging.getLogger(__name__)

VARIABLE = "musicgen_studio"
HEALTH = "/health"
GREETING = "musicgen-flows: studio"
_ANSWER_SECONDS = 3.0
_CHECK_SECONDS = 60.0


@dataclass(frozen=True)
class StudioServer:
    """The studio, as stored in the Prefect variable.

    Attributes:
        url: its URL for browsers.
        local: its URL for processes of its machine.
    """

    url: str
    local: str

    def publish(self) -> None:
        Variable.set(VARIABLE, asdict(self), overwrite=True)

    def retract(self) -> None:
        """Remove the variable, unless another studio has replaced it."""
        if Variable.get(VARIABLE) == asdict(self):
            Variable.unset(VARIABLE)

    @property
    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.local}{HEALTH}", timeout=_ANSWER_SECONDS).text == GREETING
        except httpx.HTTPError:
            return False


def studio_link(text: str) -> str:
    """Return a Markdown link to the studio; empty if none answers, and outside of runs."""
    try:
        run = runtime.flow_run.id
        server = _studio(run, int(time.monotonic() // _CHECK_SECONDS)) if run else None
    except Exception as error:  # of whatever type: the page must appear without the link
        logger.debug("the studio has no link: %s", error)
        return ""
    return markdown_link(text, server.url) if server else ""


@lru_cache(maxsize=2)
def _studio(flow_run: str, check: int) -> StudioServer | None:
    """Return the studio if it answers. The arguments are keys of the cache; `check` grows with time."""
    stored: Any = Variable.get(VARIABLE)
    if not isinstance(stored, dict) or stored.keys() != {"url", "local"}:
        return None
    server = StudioServer(**stored)
    return server if server.answers else None

"""Start `generate-music` from the studio, if a Prefect server answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.utilities.urls import url_for

from deployments.api import explain_lost, has_api
from deployments.checks.finding import Finding
from deployments.checks.server import ask_version
from deployments.options import UsageError
from deployments.run import create_run
from musicgen_core.errors import MusicgenError, translated_error
from musicgen_core.language import message
from musicgen_core.wording import joined_sentences

_ANSWER_SECONDS = 3.0
DEPLOYMENT = "generate-music"


def unavailable_reason() -> str:
    """Return why no flow can be started, in the user's language; empty if one can."""
    try:
        _check()
    except MusicgenError as error:
        return translated_error(error)
    return ""


def _check() -> None:
    if not has_api():
        raise MusicgenError(
            message("no Prefect server is running"),
            message("Start one: uv run musicgen-flows up, then the studio again"),
        )
    answer = ask_version(_ANSWER_SECONDS)
    if isinstance(answer, Finding):
        raise MusicgenError(answer.found, answer.fix)


def start(parameters: Mapping[str, Any]) -> str:
    """Start a run, and return the URL of its page.

    Raises:
        MusicgenError: no server answers, or it has no such deployment.
    """
    _check()
    try:
        with get_client(sync_client=True) as client:
            run, _ = create_run(client, DEPLOYMENT, dict(parameters))
    except UsageError as error:  # its form is another than this version's
        raise MusicgenError(
            message(
                "{deployment} was registered by another version: {problems}",
                deployment=DEPLOYMENT,
                problems=joined_sentences(error.problems),
            ),
            message("Register it again: uv run musicgen-flows up"),
        ) from error
    except httpx.HTTPError as error:
        if lost := explain_lost(error):
            raise lost from error
        raise
    return url_for("flow-run", obj_id=run.id) or ""

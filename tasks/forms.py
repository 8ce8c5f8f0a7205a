"""Links to the run forms of deployments in the Prefect UI, filled in."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote
from uuid import UUID

from prefect.client.orchestration import get_client

logger = logging.getLogger(__name__)


def form_link(deployment: str, parameters: Mapping[str, Any]) -> str | None:
    """Return the address of a deployment's run form, without the UI's host, which readers may reach by another name.

    Args:
        parameters: by their flat names; the form has its own defaults for all others.

    Returns:
        None: the server has no such deployment, or does not answer.
    """
    try:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(f"{deployment}/{deployment}")
    except Exception as error:  # whatever it is, a link is not worth the page that it is for
        logger.debug("no link to the form of %s: %s", deployment, error)
        return None
    return form_path(found.id, {**(found.parameters or {}), **parameters})


def form_path(deployment: UUID, parameters: Mapping[str, Any]) -> str:
    """Return the path and query of a form with these parameters.

    One UI decodes the query once, the other twice: so there is no percent sign in what is decoded.
    """
    text = json.dumps(parameters).replace("%", "\\u0025")
    return f"/deployments/deployment/{deployment}/run?parameters={quote(text, safe='')}"

"""The run forms of deployments in the Prefect UI: their groups of parameters, and links to forms that are filled in."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

logger = logging.getLogger(__name__)

_SOURCES = ("archives", "tokens")
"""Parameters whose defaults in runs of deployments are Prefect variables of the same name"""


def form_link(deployment: str, parameters: Mapping[str, Any]) -> str | None:
    """Return the address of a deployment's run form, without the UI's host, which readers may reach by another name.

    Args:
        parameters: by their flat names. Archives and tokens that are not among them are those of the Prefect variables
            that the deployment would take them from; the form has its own defaults for all others.

    Returns:
        None: the server has no such deployment, or does not answer.
    """
    from prefect.client.orchestration import get_client  # not at the top: groups are arranged without it

    try:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(f"{deployment}/{deployment}")
            schema = found.parameter_openapi_schema or {}
            places = _stored_places(client, schema)
    except Exception as error:  # whatever it is, a link is not worth the page that it is for
        logger.debug("no link to the form of %s: %s", deployment, error)
        return None
    beside = beside_each_other(found.parameters or {}, schema)
    return form_path(found.id, in_groups({**places, **beside, **parameters}, schema))


def _stored_places(client: SyncPrefectClient, schema: Mapping[str, Any]) -> dict[str, str]:
    """Return those of a form's sources that Prefect variables have. Where something is written is new for each run."""
    wanted = [name for name in _SOURCES if name in schema.get("properties", {})]
    found = {name: client.read_variable_by_name(f"musicgen_{name}") for name in wanted}
    return {name: str(variable.value) for name, variable in found.items() if variable is not None and variable.value}


def form_path(deployment: UUID, parameters: Mapping[str, Any]) -> str:
    """Return the path and query of a form with these parameters.

    One UI decodes the query once, the other twice: so there is no percent sign in what is decoded.
    """
    text = json.dumps(parameters).replace("%", "\\u0025")
    return f"/deployments/deployment/{deployment}/run?parameters={quote(text, safe='')}"


def in_groups(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with each field of a group inside its group; what the schema doesn't know stays.

    Null, as earlier versions' forms sent it for what is left out, is left out.
    """
    groups, known = groups_of_schema(schema), schema.get("properties", {})
    found = {name: value for name, value in given.items() if name not in groups}
    found = {name: value for name, value in found.items() if value is not None or name not in known}
    for group, fields in groups.items():
        inside = given.get(group) or {}
        if not isinstance(inside, Mapping):
            found[group] = inside  # validation refuses it
            continue
        inside = {**inside, **{name: found.pop(name) for name in fields if name in found}}
        values = {name: _as_in_form(value, fields.get(name, {})) for name, value in inside.items()}
        if values := {name: value for name, value in values.items() if value is not None}:
            found[group] = values
    return found


def beside_each_other(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with the fields of groups by their own names."""
    groups = groups_of_schema(schema)
    found = {name: value for name, value in given.items() if name not in groups}
    for group in groups:
        inside = given.get(group) or {}
        found |= inside if isinstance(inside, Mapping) else {group: inside}
    return found


def _as_in_form(value: Any, field: Mapping[str, Any]) -> Any:
    """Return a value as the form has it; None: it is left out there."""
    if isinstance(value, bool) and "on" in field.get("enum", ()):
        return "on" if value else "off"
    return None if value == "auto" and field.get("type") == "integer" else value


def groups_of_schema(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the groups of parameters in a schema, and the schema of each field."""
    definitions, properties = schema.get("definitions", {}), schema.get("properties", {})
    kinds = {name: entry["$ref"].rpartition("/")[2] for name, entry in properties.items() if "$ref" in entry}
    return {name: definitions[kind].get("properties", {}) for name, kind in kinds.items()}

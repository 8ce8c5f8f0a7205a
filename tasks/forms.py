"""Run forms of deployments in the Prefect UI: groups of parameters, links to prefilled forms, and advice on fields.

Messages of the core name command-line options; in the UI they name the fields of the form. Nothing here imports Prefect
at module level.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

_QUOTED = r"""(?<!\w)(?:'[^']*'(?!\w)|"[^"]*"|`[^`]*`|“[^”]*”)"""
_COMMAND = r"(?<![\w-])(?:musicgen-flows|uv|prefect|ssh|gcloud|hf|wandb) (?:(?![.;,:](?:\s|$)|\)).)*"
"""Pattern of a command line in a sentence, up to the next punctuation mark"""
_OPTION = r"(?<![\w/.-])--(?P<name>[a-z][a-z0-9-]*)(?![\w/]|[.-]\w)"
_PARTS = re.compile(f"{_QUOTED}|{_COMMAND}|{_OPTION}", re.DOTALL)


def in_form(text: str) -> str:
    """Return a text in which options are replaced by the fields of the current flow's form, such as `init_adapter`.

    Options of other programs, quotations, command lines and paths stay as they are, as does every text outside of
    flows. `--no-evaluate` becomes the field with its value: `evaluate false`.
    """
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow is None:
        return text
    form = context.flow.parameters
    return with_fields(text, {"properties": form.properties, "definitions": form.definitions})


def with_fields(text: str, schema: Mapping[str, Any]) -> str:
    """Return a text in which options are replaced by the fields of a form, whose schema of parameters is given."""
    groups = schema.get("definitions", {}).values()
    fields = {*schema.get("properties", ()), *(name for group in groups for name in group.get("properties", ()))}

    def shown(part: re.Match[str]) -> str:
        return _field(part["name"], fields) or part[0] if part["name"] else part[0]

    return _PARTS.sub(shown, text)


def _field(option: str, fields: Collection[str]) -> str | None:
    name = option.replace("-", "_")
    # The command line has short names: --epochs for num_epochs, --prompt for prompts.
    found = next((one for one in (name, f"num_{name}", f"{name}s") if one in fields), None)
    if found is None and name.startswith("no_") and name.removeprefix("no_") in fields:
        return f"{name.removeprefix('no_')} false"
    return found


logger = logging.getLogger(__name__)

_SOURCES = ("archives", "tokens")
"""Parameters that runs of deployments take from Prefect variables of the same name by default"""


def form_link(deployment: str, parameters: Mapping[str, Any]) -> str | None:
    """Return the URL of a deployment's run form without the host, which differs between readers.

    Values are given by flat name. Archives and tokens default to the Prefect variables that the deployment would use,
    all others to the form's own defaults. None: the server has no such deployment or does not answer.
    """
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            found = client.read_deployment_by_name(f"{deployment}/{deployment}")
            schema = found.parameter_openapi_schema or {}
            places = _stored_places(client, schema)
    except Exception as error:  # of whatever type: the page must appear without the link
        logger.debug("no link to the form of %s: %s", deployment, error)
        return None
    beside = beside_each_other(found.parameters or {}, schema)
    return form_path(found.id, in_groups({**places, **beside, **parameters}, schema))


def _stored_places(client: SyncPrefectClient, schema: Mapping[str, Any]) -> dict[str, str]:
    """Return a form's sources that Prefect variables define. Output locations stay empty: each run has its own."""
    wanted = [name for name in _SOURCES if name in schema.get("properties", {})]
    found = {name: client.read_variable_by_name(f"musicgen_{name}") for name in wanted}
    return {name: str(variable.value) for name, variable in found.items() if variable is not None and variable.value}


def form_path(deployment: UUID, parameters: Mapping[str, Any]) -> str:
    """Return the path and query of a form with these parameters.

    One UI decodes the query once, the other twice, so the decoded text must not contain a percent sign.
    """
    text = json.dumps(parameters).replace("%", "\\u0025")
    return f"/deployments/deployment/{deployment}/run?parameters={quote(text, safe='')}"


def in_groups(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters with each field inside its group; names that the schema doesn't know stay.

    Null values, which forms of earlier versions sent for empty fields, are dropped.
    """
    groups, known = groups_of_schema(schema), schema.get("properties", {})
    found = {name: _as_text(value, known.get(name, {})) for name, value in given.items() if name not in groups}
    found = {name: value for name, value in found.items() if value is not None or name not in known}
    for group, fields in groups.items():
        inside = given.get(group) or {}
        if not isinstance(inside, Mapping):
            found[group] = inside  # validation rejects it
            continue
        inside = {**inside, **{name: found.pop(name) for name in fields if name in found}}
        values = {name: _as_in_form(value, fields.get(name, {})) for name, value in inside.items()}
        if values := {name: value for name, value in values.items() if value is not None}:
            found[group] = values
    return found


def beside_each_other(given: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return flat parameters: the fields of each group by their own names."""
    groups = groups_of_schema(schema)
    found = {name: value for name, value in given.items() if name not in groups}
    for group in groups:
        inside = given.get(group) or {}
        found |= inside if isinstance(inside, Mapping) else {group: inside}
    return found


def _as_in_form(value: Any, field: Mapping[str, Any]) -> Any:
    """Return a value as the form represents it; None: the field is empty."""
    if isinstance(value, bool) and "on" in field.get("enum", ()):
        return "on" if value else "off"
    return None if value == "auto" and field.get("type") == "integer" else value


def _as_text(value: Any, field: Mapping[str, Any]) -> Any:
    """Return a list of texts as the one text that a form has for it, such as adapters with strengths."""
    is_list = isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    return ", ".join(value) if is_list and field.get("type") == "string" else value


def groups_of_schema(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the groups of parameters in a schema, each with the schemas of its fields."""
    definitions, properties = schema.get("definitions", {}), schema.get("properties", {})
    kinds = {name: entry["$ref"].rpartition("/")[2] for name, entry in properties.items() if "$ref" in entry}
    return {name: definitions[kind].get("properties", {}) for name, kind in kinds.items()}

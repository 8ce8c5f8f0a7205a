"""Parameters of a deployment on the command line: each by its own name, without its group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from deployments.options import UsageError, similar
from tasks.forms import groups_of_schema, in_groups

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse


def parsed(entries: Sequence[str]) -> dict[str, Any]:
    """Parse `name=value` entries. A value is JSON or text, as for `prefect deployment run`."""
    return dict(map(_parsed, entries))


def _parsed(entry: str) -> tuple[str, Any]:
    name, _, value = entry.partition("=")
    try:
        return name, json.loads(value, parse_constant=_refuse)
    except ValueError:
        return name, value


def _refuse(constant: str) -> None:
    """Reject NaN and Infinity, which pass every bound of a schema and are not valid JSON for a server."""
    raise ValueError(constant)


def arranged(given: Mapping[str, Any], deployment: DeploymentResponse) -> dict[str, Any]:
    """Return parameters in the groups of the deployment's run form.

    Raises:
        UsageError: the deployment does not take some parameters. All of them are listed.
    """
    schema = deployment.parameter_openapi_schema or {}
    found = in_groups(given, schema)
    if problems := list(_problems(found, schema, deployment.name)):
        raise UsageError(problems)
    return found


def _problems(given: Mapping[str, Any], schema: dict[str, Any], deployment: str) -> Iterator[str]:
    from prefect.utilities.schema_tools import validate

    groups, properties = groups_of_schema(schema), schema.get("properties", {})
    known = {name: entry for name, entry in properties.items() if name not in groups}
    for fields in groups.values():
        known |= fields
    if unknown := [name for name in given if name not in properties]:
        near = dict.fromkeys(match for name in unknown for match in similar(name, known))
        meant = f" (perhaps {', '.join(near)})" if near else ""
        yield f"{deployment} has no parameter {', '.join(map(repr, unknown))}{meant}; it has {', '.join(known)}"
    for error in validate({name: given[name] for name in given if name in properties}, schema, ignore_required=True):
        name = error.json_path.rpartition(".")[2]
        takes_list = known.get(name, {}).get("type") == "array"
        hint = f""" (a list: -p '{name}=["one", "another"]')""" if takes_list else ""
        yield f"{name}: {error.message}{hint}"

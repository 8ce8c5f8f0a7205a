"""Names and places of a flow run: from its parameters, else from Prefect variables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prefect import runtime
from prefect.context import FlowRunContext
from prefect.variables import Variable

from musicgen_core.errors import ConfigError
from musicgen_core.escaping import one_line


def run_name(flow: str, parameter: str, variable: str | None = None) -> Callable[[], str]:
    """`train-lora · jazz-2026-11-23`: after the last folder of the place in a parameter. A retry gets the same.

    Args:
        variable: the Prefect variable that the place comes from where it is not given; by default it is new_folder's.
    """

    def name() -> str:
        given = runtime.flow_run.parameters.get(parameter)
        if not given:
            given = Variable.get(variable) if variable else new_folder(flow)
        return f"{flow} · {one_line(_last_folder(str(given)))}" if given else flow

    return name


def _last_folder(place: str) -> str:
    """`jazz` for /data/jazz, gs://bucket/jazz/ and /data/jazz/*.zip."""
    parts = (place if "://" in place else str(Path(place).absolute())).rstrip("/").split("/")
    plain = [part for part in parts if not set(part) & set("*?[")]
    return plain[-1] or place


def place(given: str | None, variable: str) -> str:
    """A place that was given, else the one in a Prefect variable.

    Raises:
        ConfigError: neither is there.
    """
    found = given or Variable.get(variable)
    if not found:
        raise ConfigError(
            f"no {variable.removeprefix('musicgen_')} given, and the Prefect variable {variable} is not set",
            f"Give it as a parameter, or run: prefect variable set {variable} PATH",
        )
    return str(found)


def new_folder(flow: str) -> str:
    """The folder that the current run of a flow makes where none is given: `train-20261123-030000-1a2b3c`."""
    return f"{flow.partition('-')[0]}-{creation_stamp()}"


def creation_stamp() -> str:
    """When the current flow run was created, as a file name. A restart of the run gets the same."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only inside a flow"
    created = context.flow_run.created
    assert created is not None  # the server sets it
    # Scheduled runs are created many at a time; the end of the id, a UUIDv7, tells them apart.
    return f"{created:%Y%m%d-%H%M%S}-{str(context.flow_run.id)[-6:]}"

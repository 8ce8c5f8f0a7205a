"""Names and locations of flow runs, from parameters or Prefect variables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from prefect import runtime
from prefect.client.schemas import FlowRun
from prefect.context import FlowRunContext
from prefect.variables import Variable

from flows.fields import Device
from musicgen_core import storage
from musicgen_core.config import DEFAULT_MODEL, DEFAULT_PROMPTS
from musicgen_core.errors import ConfigError
from musicgen_core.escaping import one_line
from musicgen_core.language import message

PROMPT_CHARACTERS = 60


def run_name(flow: str, parameter: str, variable: str | None = None) -> Callable[[], str]:
    """Return a function that names a run by the last folder of a location: `train-lora · jazz · 2026-11-23 15:04:05`.

    Args:
        flow: the flow's name.
        parameter: the parameter that holds the location.
        variable: the Prefect variable to use if the parameter is empty; None: the folder of `new_folder`.
    """

    def name() -> str:
        if (own := _own_name(flow)) is not None:
            return own
        given = runtime.flow_run.parameters.get(parameter)
        given = ", ".join(given) if isinstance(given, list | tuple) else given
        if not given and not variable:
            return f"{flow} · {new_folder(flow)}"  # already contains the time
        given = given or Variable.get(str(variable))
        return _with_time(f"{flow} · {one_line(_last_folder(str(given)))}" if given else flow)

    return name


def music_name(flow: str) -> Callable[[], str]:
    """Return a function that names a run by its first prompt or prompts file: `generate-music · calm jazz · 2026-…`."""

    def name() -> str:
        if (own := _own_name(flow)) is not None:
            return own
        given = runtime.flow_run.parameters
        prompts, file = given.get("prompts"), given.get("prompts_file")
        first = prompts[0] if prompts else _last_folder(str(file)) if file else DEFAULT_PROMPTS[0]
        return _with_time(f"{flow} · {one_line(first, PROMPT_CHARACTERS)}")

    return name


def _own_name(flow: str) -> str | None:
    """Return the name that a person gave the current run; None: its name was generated."""
    name = runtime.flow_run.name
    # A name made here may come from a copied run. `musicgen-flows run` names runs after the flow.
    is_made = not name or name == flow or name.startswith(f"{flow} · ") or is_generated(name)
    return None if is_made else name


def is_generated(name: str) -> bool:
    """Return whether Prefect generated a run's name: `keen-otter` (its server) or `theta3-draconis-void` (its UI)."""
    from coolname.data import config

    if _OF_THE_UI.fullmatch(name):
        return True
    first, _, second = name.partition("-")
    parts: dict[str, Any] = config
    words = {word for part in parts.values() for word in part.get("words", ())}
    return first in words and second in words


_OF_THE_UI = re.compile(
    r"((alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi"
    r"|psi|omega)\d*(-[a-z]*)+"
    # The V2 UI
    r"|(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic"
    r"|Handcrafted|Tasty|Handmade|Incredible)-\w{1,6})"
)


def _with_time(name: str) -> str:
    """Append the creation time, which distinguishes runs of one name; a retry keeps the same time."""
    created = _current_run().created
    return f"{name} · {created.astimezone():%Y-%m-%d %H:%M:%S}" if created else name


def _last_folder(location: str) -> str:
    """Return a path's last folder: `jazz` for /data/jazz, gs://bucket/jazz/ and /data/jazz/*.zip."""
    parts = (location if "://" in location else str(Path(location).absolute())).rstrip("/").split("/")
    plain = [part for part in parts if not set(part) & set("*?[")]
    return plain[-1] or location


def location_of(given: str | None, variable: str) -> str:
    """Return a given location, or by default the value of a Prefect variable.

    Raises:
        ConfigError: neither is set.
    """
    found = given or Variable.get(variable)
    if not found:
        raise ConfigError(
            message(
                "no {place} given, and the Prefect variable {variable} is not set",
                place=variable.removeprefix("musicgen_"),
                variable=variable,
            ),
            message("Give it as a parameter, or run: uv run prefect variable set {variable} PATH", variable=variable),
        )
    return str(found)


def is_of_deployment() -> bool:
    """Return whether the current run belongs to a deployment, so that empty parameters have defaults of their own."""
    return bool(runtime.deployment.id)


def chosen_model(given: str) -> str:
    """Return the given model; in runs of deployments that of the Prefect variable, or else the default model."""
    return given or _default("musicgen_model") or DEFAULT_MODEL


def chosen_device(given: Device) -> Device:
    """Return the given device; for auto, in runs of deployments, that of the Prefect variable if it is set."""
    return cast(Device, (_default("musicgen_device") if given == "auto" else "") or given)


def _default(variable: str) -> str:
    return str(Variable.get(variable) or "") if is_of_deployment() else ""


def new_folder(flow: str) -> str:
    """Return the name of the folder that the current run creates by default: `train-20261123-030000-1a2b3c`."""
    return f"{flow.partition('-')[0]}-{creation_stamp()}"


def new_location(variable: str, flow: str) -> str:
    """Return the path of the folder that the current run creates by default, under the location of a variable."""
    return str(storage.as_path(location_of(None, variable)) / new_folder(flow))


def creation_stamp() -> str:
    """Return the creation time of the current flow run, as a file name; a restart of the run gets the same."""
    run = _current_run()
    assert run.created is not None  # the server sets it
    # Scheduled runs are created many at a time; the end of the id, a UUIDv7, distinguishes them.
    return f"{run.created:%Y%m%d-%H%M%S}-{str(run.id)[-6:]}"


def _current_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only inside a flow"
    return context.flow_run

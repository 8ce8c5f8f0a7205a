"""Names and places of a flow run: from its parameters, else from Prefect variables."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from prefect import runtime
from prefect.client.schemas import FlowRun
from prefect.context import FlowRunContext
from prefect.variables import Variable

from flows.parameters import Device
from musicgen_core.config import DEFAULT_MODEL, DEFAULT_PROMPTS
from musicgen_core.errors import ConfigError
from musicgen_core.escaping import one_line
from musicgen_core.language import message

PROMPT_CHARACTERS = 60


def run_name(flow: str, parameter: str, variable: str | None = None) -> Callable[[], str]:
    """`train-lora · jazz · 2026-11-23 15:04:05`: after the last folder of the place in a parameter, and the time.

    Args:
        variable: the Prefect variable that the place comes from where it is not given; by default it is new_folder's.
    """

    def name() -> str:
        if (own := _own_name(flow)) is not None:
            return own
        given = runtime.flow_run.parameters.get(parameter)
        if not given and not variable:
            return f"{flow} · {new_folder(flow)}"  # which has the time in it
        given = given or Variable.get(str(variable))
        return _with_time(f"{flow} · {one_line(_last_folder(str(given)))}" if given else flow)

    return name


def music_name(flow: str) -> Callable[[], str]:
    """`generate-music · Relaxing jazz piano · 2026-11-23 15:04:05`: after the first prompt, or the file of prompts."""

    def name() -> str:
        if (own := _own_name(flow)) is not None:
            return own
        given = runtime.flow_run.parameters
        prompts, file = given.get("prompts"), given.get("prompts_file")
        first = prompts[0] if prompts else _last_folder(str(file)) if file else DEFAULT_PROMPTS[0]
        return _with_time(f"{flow} · {one_line(first, PROMPT_CHARACTERS)}")

    return name


def _own_name(flow: str) -> str | None:
    """Return the name that a person has given the current run; None: it has one that was made."""
    name = runtime.flow_run.name
    # One made here may come from a copied run. `musicgen-flows run` names runs after the flow.
    is_made = not name or name == flow or name.startswith(f"{flow} · ") or is_generated(name)
    return None if is_made else name


def is_generated(name: str) -> bool:
    """Return whether Prefect made up a run's name: `keen-otter` its server, `theta3-draconis-void` its UI."""
    from coolname.data import config

    if _OF_THE_UI.fullmatch(name):
        return True
    first, _, second = name.partition("-")
    parts: dict[str, Any] = config
    words = {word for part in parts.values() for word in part.get("words", ())}
    return first in words and second in words


_OF_THE_UI = re.compile(
    r"((alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi"
    r"|psi|omega)\d*(-[a-z]+)+"
    # The V2 UI
    r"|(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic"
    r"|Handcrafted|Tasty|Handmade|Incredible)-\w{1,6})"
)


def _with_time(name: str) -> str:
    """Tell runs of the same name apart. A retry gets the same time."""
    created = _current_run().created
    return f"{name} · {created.astimezone():%Y-%m-%d %H:%M:%S}" if created else name


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
            message(
                "no {place} given, and the Prefect variable {variable} is not set",
                place=variable.removeprefix("musicgen_"),
                variable=variable,
            ),
            message("Give it as a parameter, or run: prefect variable set {variable} PATH", variable=variable),
        )
    return str(found)


def is_of_deployment() -> bool:
    """Return whether the current run is one of a deployment: what its form leaves out, it finds for itself."""
    return bool(runtime.deployment.id)


def chosen_model(given: str) -> str:
    """Return the model that is given, else that of the Prefect variable in runs of deployments, else the default."""
    return given or _default("musicgen_model") or DEFAULT_MODEL


def chosen_device(given: Device) -> Device:
    """Return the device that is given; for auto that of the Prefect variable in runs of deployments, if it is set."""
    return cast(Device, (_default("musicgen_device") if given == "auto" else "") or given)


def _default(variable: str) -> str:
    return str(Variable.get(variable) or "") if is_of_deployment() else ""


def new_folder(flow: str) -> str:
    """The folder that the current run of a flow makes where none is given: `train-20261123-030000-1a2b3c`."""
    return f"{flow.partition('-')[0]}-{creation_stamp()}"


def creation_stamp() -> str:
    """When the current flow run was created, as a file name. A restart of the run gets the same."""
    run = _current_run()
    assert run.created is not None  # the server sets it
    # Scheduled runs are created many at a time; the end of the id, a UUIDv7, tells them apart.
    return f"{run.created:%Y%m%d-%H%M%S}-{str(run.id)[-6:]}"


def _current_run() -> FlowRun:
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only inside a flow"
    return context.flow_run

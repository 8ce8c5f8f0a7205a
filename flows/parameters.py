"""Parameters of flows: settings spread out as parameters of their own, and places from Prefect variables."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from prefect import runtime
from prefect.context import FlowRunContext
from prefect.variables import Variable
from pydantic import Field

from musicgen_core.config import LARGEST_COUNT, MOST_WORKERS, Settings, validate
from musicgen_core.errors import ConfigError
from musicgen_core.escaping import one_line

R = TypeVar("R")

Model = Annotated[
    str,
    Field(
        description="A Hugging Face id, a directory in audiocraft's format, or a model that needs no Hub: demo (small, "
        "trained on synthesized music) or debug (random weights)"
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], Field(description="Where to compute; auto takes a GPU if there is one")
]
Archives = Annotated[
    str | None, Field(description="A file, a directory or a glob; by default the variable musicgen_archives")
]
Tokens = Annotated[str | None, Field(description="Directory of the shards; by default the variable musicgen_tokens")]
Metadata = Annotated[
    str | None, Field(description="Descriptions; by default metadata.jsonl beside the archives, if it is there")
]
Limit = Annotated[
    int | None, Field(ge=1, le=LARGEST_COUNT, description="Take only the first so many clips of the whole run")
]
MaxWorkers = Annotated[
    int | None,
    Field(ge=1, le=MOST_WORKERS, description="Archives at a time in threads; by default one a core, at most 4"),
]
TaskRunner = Annotated[
    Literal["threads", "dask"], Field(description="What runs the tasks: threads of this process, or a Dask cluster")
]
DaskAddress = Annotated[
    str | None, Field(description="Address of the Dask cluster's scheduler, such as tcp://10.0.0.5:8786")
]
Output = Annotated[
    str | None, Field(description="Directory of the wavs; by default a new one under the variable musicgen_output")
]
Evaluate = Annotated[
    bool,
    Field(description="At the end compare the best adapter with the base model on up to 500 validation clips"),
]
DEFAULT_MODEL = "facebook/musicgen-large"


def archives_at_a_time(max_workers: int | None) -> int:
    """What `MaxWorkers` comes to."""
    return max_workers or min(4, os.cpu_count() or 1)


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


def spread(kind: type[Settings], into: str = "settings") -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a flow take each field of `kind` as a parameter, and hand them to it validated as its parameter `into`.

    So a setting has one definition, with its default and description, and one name everywhere: in the UI's run
    form, in `prefect deployment run -p`, in YAML and on the command line.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @wraps(function)
        def flat(**parameters: Any) -> R:
            chosen = {name: parameters.pop(name) for name in kind.model_fields if name in parameters}
            return function(**parameters, **{into: validate(kind, chosen)})

        own = inspect.signature(function)
        fields = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[field.annotation, *field.metadata, Field(description=field.description)],
            )
            for name, field in kind.model_fields.items()
        ]
        given = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in own.parameters.items()
            if name != into
        ]
        flat.__signature__ = own.replace(parameters=[*given, *fields])  # type: ignore[attr-defined]
        flat.__annotations__ = {parameter.name: parameter.annotation for parameter in [*given, *fields]}
        return flat

    return decorate


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

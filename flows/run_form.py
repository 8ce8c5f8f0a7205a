"""Parameters of a flow, and what the UI's run form says beside each of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, TypeVar

from prefect import Flow
from pydantic import Field
from pydantic.fields import FieldInfo

from musicgen_core.config import Settings, validate

F = TypeVar("F", bound=Flow[..., Any])
R = TypeVar("R")


def spread(*kinds: type[Settings]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Let a flow take each field of `kinds` as a parameter, and hand them to it validated, an argument for each kind.

    So a parameter has one definition, with its default and description, and one name everywhere: in the UI's run
    form, in `prefect deployment run -p`, in YAML and on the command line.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        @wraps(function)
        def flat(**parameters: Any) -> R:
            chosen = [
                validate(kind, {name: parameters.pop(name) for name in kind.model_fields if name in parameters})
                for kind in kinds
            ]
            return function(*chosen, **parameters)

        fields = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=Annotated[field.annotation, *field.metadata, Field(description=field.description)],
            )
            for kind in kinds
            for name, field in kind.model_fields.items()
        ]
        returns = inspect.signature(function).return_annotation
        flat.__signature__ = inspect.Signature(fields, return_annotation=returns)  # type: ignore[attr-defined]
        flat.__annotations__ = {parameter.name: parameter.annotation for parameter in fields}
        return flat

    return decorate


def explained(flow: F) -> F:
    """Give a flow a docstring with an `Args:` section, the only place where Prefect looks for descriptions.

    They come from the parameters' own annotations. The docstring of the function itself stays short.
    """
    lines = [inspect.getdoc(flow.fn) or "", "", "Args:"]
    for name, parameter in inspect.signature(flow.fn).parameters.items():
        lines.append(f"    {name}: {FieldInfo.from_annotation(parameter.annotation).description}")
    flow.__doc__ = "\n".join(lines)
    return flow

"""What the UI's run form says beside each parameter of a flow."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

from prefect import Flow
from pydantic.fields import FieldInfo

F = TypeVar("F", bound=Flow[..., Any])


def explained(flow: F) -> F:
    """Give a flow a docstring with an `Args:` section, the only place where Prefect looks for descriptions.

    They come from the parameters' own annotations. The docstring of the function itself stays short.
    """
    lines = [inspect.getdoc(flow.fn) or "", "", "Args:"]
    for name, parameter in inspect.signature(flow.fn).parameters.items():
        lines.append(f"    {name}: {FieldInfo.from_annotation(parameter.annotation).description}")
    flow.__doc__ = "\n".join(lines)
    return flow

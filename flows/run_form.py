"""Flows with a run form that describes each parameter, and that accept parameters both grouped and flat."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, ParamSpec, TypeVar

from prefect import Flow
from pydantic import Field
from pydantic.fields import FieldInfo

from flows.parameters import grouped, groups_of

P = ParamSpec("P")
R = TypeVar("R")

_EMPTY = Field(json_schema_extra={"default": {}})
"""Default of a group: forms prefill its fields with their own defaults, and leave the others empty."""


class _LeftOut(Enum):
    """Default of a group's field as a flat parameter: not given."""

    LEFT_OUT = ""


class FormFlow(Flow[P, R]):
    """A flow with groups of parameters, whose fields are also accepted as flat parameters.

    `musicgen-flows` passes them flat, as do scripts, schedules and runs from versions without groups. Prefect validates
    a run's parameters against the signature of the function, which therefore also has the flat fields. The flow's own
    signature, from which the run form is generated, has only the groups.
    """

    def __init__(self, fn: Callable[P, R], name: str, flow_run_name: Callable[[], str]) -> None:
        form = inspect.signature(fn, eval_str=True)
        fn.__annotations__ = {each.name: each.annotation for each in form.parameters.values()}
        groups = groups_of(fn.__annotations__)
        described = {
            each: inspect.getdoc(kind) if each in groups else FieldInfo.from_annotation(kind).description
            for each, kind in fn.__annotations__.items()
        }
        shown = [
            each.replace(annotation=Annotated[each.annotation, _EMPTY]) if each.name in groups else each
            for each in form.parameters.values()
        ]
        beside = [
            inspect.Parameter(field, inspect.Parameter.KEYWORD_ONLY, default=_LeftOut.LEFT_OUT, annotation=Any)
            for kind in groups.values()
            for field in kind.model_fields
        ]
        self._groups = groups
        self.__signature__ = fn.__signature__ = form.replace(parameters=shown)  # type: ignore[attr-defined]
        super().__init__(fn, name=name, flow_run_name=flow_run_name)
        fn.__signature__ = form.replace(parameters=[*shown, *beside])  # type: ignore[attr-defined]
        # Prefect reads parameter descriptions only from a docstring's Args section. The function's stays short.
        arguments = [f"    {each}: {text}" for each, text in described.items()]
        self.__doc__ = "\n".join([inspect.getdoc(fn) or "", "", "Args:", *arguments])

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return _given(super().validate_parameters(grouped(_given(parameters), self._groups)))

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return super().serialize_parameters(_given(parameters))


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not _LeftOut.LEFT_OUT}


def form_flow(name: str, flow_run_name: Callable[[], str]) -> Callable[[Callable[P, R]], FormFlow[P, R]]:
    """Turn a function into a flow, as Prefect's `@flow` does, with a run form that describes each parameter."""

    def decorate(function: Callable[P, R]) -> FormFlow[P, R]:
        return FormFlow(function, name=name, flow_run_name=flow_run_name)

    return decorate

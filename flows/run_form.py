"""Flows with a run form that explains itself, and which take each parameter by its own name, grouped or not."""

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
"""Of a group: a form fills it in with the defaults of its fields, and leaves out those that have none."""


class _LeftOut(Enum):
    """What a field of a group has beside its group where it is not given."""

    LEFT_OUT = ""


class FormFlow(Flow[P, R]):
    """A flow with groups of parameters, whose fields may also be given beside the groups.

    Scripts, schedules and runs from before there were groups give them so, and `musicgen-flows` does. Prefect looks
    only at the signature of the function to see what a run may be given, so that has these fields, too. The flow's own
    signature, of which the run form is made, has the groups alone.
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
        # Prefect reads the descriptions in the docstring's Args section alone. That of the function stays short.
        arguments = [f"    {each}: {text}" for each, text in described.items()]
        self.__doc__ = "\n".join([inspect.getdoc(fn) or "", "", "Args:", *arguments])

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return _given(super().validate_parameters(grouped(_given(parameters), self._groups)))

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return super().serialize_parameters(_given(parameters))


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not _LeftOut.LEFT_OUT}


def form_flow(name: str, flow_run_name: Callable[[], str]) -> Callable[[Callable[P, R]], FormFlow[P, R]]:
    """Make a flow of a function, as Prefect's `@flow` does, with a run form that describes each parameter."""

    def decorate(function: Callable[P, R]) -> FormFlow[P, R]:
        return FormFlow(function, name=name, flow_run_name=flow_run_name)

    return decorate

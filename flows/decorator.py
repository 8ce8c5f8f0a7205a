"""The decorator of the flows.

The run form describes each parameter; a run accepts parameters both grouped and flat; its final state and summary give
the reason of a failure, or where a cancelled run resumes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from functools import partial, wraps
from typing import Annotated, Any, ParamSpec, TypeVar

from prefect import Flow, runtime
from prefect.client.schemas import State
from prefect.states import Cancelled, Failed
from pydantic import Field
from pydantic.fields import FieldInfo

from flows.parameters import grouped, groups_of
from flows.startup import set_up_run
from musicgen_core.errors import MusicgenError, is_refusal, raise_if_interrupted
from tasks.artifacts import PATIENCE_IF_INTERRUPTED_SECONDS, artifacts_of_run
from tasks.forms import in_form
from tasks.interruption import terminal_command
from tasks.next_steps import Outcome
from tasks.runs import cancellable, is_ended_by_worker, leave_to_worker
from tasks.summary import cancelled_section, failed_section, show_summary

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
    """Turn a function into a flow, as Prefect's `@flow` does, with set-up, a run form, and reasons of failures."""

    def decorate(function: Callable[P, R]) -> FormFlow[P, R]:
        return FormFlow(_ends_with_reason(function), name=name, flow_run_name=flow_run_name)

    return decorate


def _ends_with_reason(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate the function of a flow, which gets the set-up, and a final state with the reason of its end."""

    @cancellable
    def run(*arguments: P.args, **parameters: P.kwargs) -> R:
        set_up_run()
        return function(*arguments, **parameters)

    @wraps(function)
    def explained(*arguments: P.args, **parameters: P.kwargs) -> Any:
        try:
            result = run(*arguments, **parameters)
        except Exception as error:
            raise_if_interrupted(error)
            with artifacts_of_run() as artifacts:
                refused = Outcome(is_refused=is_refusal(error))
                show_summary(artifacts, partial(failed_section, error), outcome=lambda: refused, again="Try again")
            if not isinstance(error, MusicgenError):
                raise
            return Failed(message=in_form(str(error)), data=error)  # raised, it would get Prefect's prefix
        if isinstance(result, State) and result.is_cancelled():
            again = command.again if (command := terminal_command()) is not None else ""
            # Ctrl-C pressed twice: the summary is not worth the state.
            with suppress(KeyboardInterrupt), artifacts_of_run(PATIENCE_IF_INTERRUPTED_SECONDS) as artifacts:
                show_summary(artifacts, partial(cancelled_section, str(result.message), again))
            if is_ended_by_worker() and not runtime.flow_run.parent_flow_run_id:
                leave_to_worker(str(result.message))
            result = Cancelled(message=result.message)  # Prefect would count a task's own state instead of showing it
        return result

    return explained

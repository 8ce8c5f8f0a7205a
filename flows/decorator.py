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
from typing import Annotated, Any, TypeVar, get_type_hints

from prefect import Flow, runtime
from prefect.client.schemas import State
from prefect.states import Cancelled, Failed
from pydantic import Field

from flows.parameters import grouped, groups_in
from flows.startup import set_up_run
from musicgen_core.errors import MusicgenError, is_refusal, raise_if_interrupted
from musicgen_core.settings import Settings
from tasks.artifacts import PATIENCE_IF_INTERRUPTED_SECONDS, artifacts_of_run
from tasks.forms import in_form
from tasks.interruption import terminal_command
from tasks.next_steps import Outcome
from tasks.runs import cancellable, is_ended_by_worker, leave_to_worker
from tasks.summary import cancelled_section, failed_section, show_summary

R = TypeVar("R")
F = TypeVar("F", bound=Settings)

_EMPTY = Field(json_schema_extra={"default": {}})
"""Default of a group: forms prefill its fields with their own defaults, and leave the others empty."""


class _LeftOut(Enum):
    """Default of a group's field as a flat parameter: not given."""

    LEFT_OUT = ""


class FormFlow(Flow[..., R]):
    """A flow whose parameters are the fields of a form; the fields of its groups are also accepted flat.

    `musicgen-flows` passes them flat, as do scripts, schedules and runs from versions without groups. Prefect validates
    a run's parameters against the signature of the function, which therefore also has the flat fields. The flow's own
    signature, from which the run form is generated, has only the groups.
    """

    def __init__(self, function: Callable[[F], R], form: type[F], name: str, flow_run_name: Callable[[], str]) -> None:
        groups, kinds = groups_in(form), get_type_hints(form, include_extras=True)

        @wraps(function)
        def fn(**parameters: Any) -> R:
            return function(form(**parameters))

        shown = [
            _parameter(each, field.default, Annotated[kinds[each], _EMPTY] if each in groups else kinds[each])
            for each, field in form.model_fields.items()
        ]
        beside = [_parameter(field, _LeftOut.LEFT_OUT, Any) for kind in groups.values() for field in kind.model_fields]
        self._groups = groups
        fn.__annotations__ = {each.name: each.annotation for each in shown}
        self.__signature__ = fn.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        super().__init__(fn, name=name, flow_run_name=flow_run_name)
        fn.__signature__ = inspect.Signature([*shown, *beside])  # type: ignore[attr-defined]
        # Prefect reads parameter descriptions only from a docstring's Args section. The function's stays short.
        described = {each: field.description for each, field in form.model_fields.items()}
        described |= {each: inspect.getdoc(kind) for each, kind in groups.items()}
        arguments = [f"    {each}: {text}" for each, text in described.items()]
        self.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *arguments])

    def validate_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return _given(super().validate_parameters(grouped(_given(parameters), self._groups)))

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return super().serialize_parameters(_given(parameters))


def _given(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not _LeftOut.LEFT_OUT}


def _parameter(name: str, default: Any, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def form_flow(name: str, form: type[F], flow_run_name: Callable[[], str]) -> Callable[[Callable[[F], R]], FormFlow[R]]:
    """Turn a function of a form into a flow, with set-up, a run form, and the reason in its final state.

    Args:
        name: the flow's name.
        form: the model whose fields are the flow's parameters; the function gets an instance.
        flow_run_name: a function that names the current run.
    """

    def decorate(function: Callable[[F], R]) -> FormFlow[R]:
        return FormFlow(_ends_with_reason(function), form, name, flow_run_name)

    return decorate


def _ends_with_reason(function: Callable[[F], R]) -> Callable[[F], R]:
    """Decorate the function of a flow, which gets the set-up, and a final state with the reason of its end."""

    @cancellable
    def run(given: F) -> R:
        set_up_run()
        return function(given)

    @wraps(function)
    def explained(given: F) -> Any:
        try:
            result = run(given)
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

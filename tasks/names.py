"""Names of task runs."""

from __future__ import annotations

from collections.abc import Callable

from prefect import runtime


def counted_name(verb: str, parameter: str, noun: str) -> Callable[[], str]:
    """Return a function that names a task run by one of its parameters, a number: `render-1-prompt`."""

    def name() -> str:
        count = runtime.task_run.parameters[parameter]
        return f"{verb}-{count}-{noun}{'' if count == 1 else 's'}"

    return name

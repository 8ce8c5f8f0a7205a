"""Final states and summaries of flow runs that fail or are cancelled: the reason, and what to do next."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

from prefect import runtime
from prefect.client.schemas import State
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled, Failed

from musicgen_core.errors import MusicgenError, is_refusal, raise_if_interrupted
from tasks.advice import in_form
from tasks.artifacts import PATIENCE_IF_INTERRUPTED_SECONDS, artifacts_of_run
from tasks.cancelling import cancellable, is_ended_by_worker, leave_to_worker
from tasks.interruption import terminal_command
from tasks.next_steps import Outcome
from tasks.summary import cancelled_section, failed_section, show_summary

P = ParamSpec("P")
R = TypeVar("R")


def ends_with_reason(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a flow: its final state and summary give the reason of a failure, or where a cancelled run resumes."""
    run = cancellable(function)

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


class StatesSuffice(logging.Filter):
    """Drop tracebacks of user-facing errors and of cancelled runs: the log line with the final state has the message.

    Prefect logs such an error up to three times, the last time after the final state, which should be the last line.
    A final state of Cancelled, which a person asked for, is logged as INFO instead of ERROR.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno == logging.ERROR and record.getMessage().startswith("Finished in state Cancel"):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return not (record.exc_info and isinstance(record.exc_info[1], (MusicgenError, CancelledRun)))


def log_reasons_once() -> None:
    """End the logs of this process's runs with the final state, without tracebacks of user-facing errors."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(existing, StatesSuffice) for existing in logger.filters):
            logger.addFilter(StatesSuffice())

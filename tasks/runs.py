"""Names of task runs, and states of runs: Cancelled with where a retry resumes, and waiting for disk space."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, CancelledRun, TerminationSignal
from prefect.states import Cancelled, Cancelling, Running

from musicgen_core.errors import raise_if_interrupted
from musicgen_core.language import message
from tasks.forms import in_form
from tasks.interruption import terminal_command

logger = logging.getLogger(__name__)
WAITING = "WaitingForDisk"
"""Name of a state of type Running: the process is alive, sends heartbeats, and can be cancelled"""
P = ParamSpec("P")
R = TypeVar("R")

CANCELLED = message("cancelled; Retry continues where it stopped")
PATIENCE_SECONDS = 120.0
"""How long a worker may take to mark a run as Cancelled: 30 s for saving, and then it loads the flow for its hooks"""


def counted_name(verb: str, parameter: str, noun: str) -> Callable[[], str]:
    """Return a function that names a task run by one of its parameters, a number: `render-1-prompt`."""

    def name() -> str:
        count = runtime.task_run.parameters[parameter]
        return f"{verb}-{count}-{noun}{'' if count == 1 else 's'}"

    return name


def cancellable(function: Callable[P, R]) -> Callable[P, R | State[R]]:
    """Decorate the function of a task or flow: after a person has cancelled the run, it ends as Cancelled, not Crashed.

    A person cancels a run in the UI, or by Ctrl-C in the terminal of its command. A flow receives that state in place
    of a task's result, and a CancelledRun from a subflow.
    """

    @wraps(function)
    def ended(*arguments: P.args, **parameters: P.kwargs) -> R | State[R]:
        try:
            try:
                return function(*arguments, **parameters)
            except CancelledRun:
                raise
            except Exception as error:
                raise_if_interrupted(error)
                raise
        except CancelledRun as cancelled:  # raised by a task or subflow of this run
            text = str(cancelled)
        except TerminationSignal:
            if not is_cancelling():
                raise
            text = CANCELLED
        except KeyboardInterrupt:
            if (command := terminal_command()) is None:
                raise
            text = command.ended()
        return Cancelled(message=text)

    return ended


def is_cancelling() -> bool:
    """Return whether a person has cancelled the current flow run or its parent."""
    try:
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(run).state for run in _current_runs()]
    except Exception:  # without its server, a run ends as after any other SIGTERM
        return False
    return any(state is not None and (state.is_cancelling() or state.is_cancelled()) for state in states)


def _current_runs() -> set[UUID]:
    """Return the ids of the current flow run and of its parent, if it has one."""
    return {UUID(str(run)) for run in (runtime.flow_run.id, runtime.flow_run.root_flow_run_id) if run}


def is_ended_by_worker() -> bool:
    """Return whether a worker started this process; it sets the state Cancelled after the process has ended."""
    return os.environ.get("PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS", "true").lower() == "false"


def leave_to_worker(text: str) -> NoReturn:
    """End the current, cancelled flow run without setting its state: its worker does that afterwards.

    If the state were Cancelled while the process is still ending, the worker would cancel a Retry of that moment. The
    worker's own message is uninformative. A detached process, which the worker does not end, replaces it by the run's
    message.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only inside a flow"
    run = context.flow_run
    subprocess.Popen(
        [sys.executable, "-m", "tasks.runs", str(run.id), str(runtime.flow_run.run_count), text],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    run.state = Cancelling(message=text)  # only locally, not on the server: it is the last line of the log
    raise Abort(text)  # Prefect's exception that ends a run without setting a state


def _put_back(flow_run: UUID, attempt: int, text: str) -> None:
    """Wait for the worker to set Cancelled, and replace its message; if the worker is gone, set the state."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_flow_run(flow_run)
            state = found.state
            if found.run_count != attempt or state is None or not (state.is_cancelling() or state.is_cancelled()):
                return  # it was retried
            if state.is_cancelled() or time.monotonic() > deadline:
                client.set_flow_run_state(flow_run, Cancelled(message=text), force=True)
                return
            time.sleep(0.5)


def show_waiting(reason: str | None) -> None:
    """Set the state of the current flow run and of its parent to `WaitingForDisk`; without a reason, to Running."""
    state: State[Any] = Running(name=WAITING, message=in_form(reason)) if reason is not None else Running()
    try:
        with get_client(sync_client=True) as client:
            for run in _current_runs():
                # Otherwise the server counts it as another start of the run, of which automations allow three.
                policy = client.read_flow_run(run).empirical_policy
                client.update_flow_run(run, empirical_policy=policy.model_copy(update={"resuming": True}))
                client.set_flow_run_state(run, state)  # not forced: a run that is being cancelled stays so
    except Exception as error:  # an unreachable server must not end the training run
        raise_if_interrupted(error)
        logger.warning("the state of the run could not be set (%s: %s)", type(error).__name__, error)


if __name__ == "__main__":
    _put_back(UUID(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

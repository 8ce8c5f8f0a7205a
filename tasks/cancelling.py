"""Cancellation of runs: tasks and flows end as Cancelled, and the state's message names where a retry resumes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, CancelledRun, TerminationSignal
from prefect.states import Cancelled, Cancelling

from musicgen_core.errors import raise_if_interrupted
from musicgen_core.language import message
from tasks.interruption import terminal_command

P = ParamSpec("P")
R = TypeVar("R")

CANCELLED = message("cancelled; Retry continues where it stopped")
PATIENCE_SECONDS = 120.0
"""How long a worker may take to mark a run as Cancelled: 30 s for saving, and then it loads the flow for its hooks"""


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
            message = str(cancelled)
        except TerminationSignal:
            if not is_cancelling():
                raise
            message = CANCELLED
        except KeyboardInterrupt:
            if (command := terminal_command()) is None:
                raise
            message = command.ended()
        return Cancelled(message=message)

    return ended


def is_cancelling() -> bool:
    """Return whether a person has cancelled the current flow run or its parent."""
    runs = (runtime.flow_run.id, runtime.flow_run.root_flow_run_id)
    try:
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(UUID(str(run))).state for run in dict.fromkeys(runs) if run]
    except Exception:  # without its server, a run ends as after any other SIGTERM
        return False
    return any(state is not None and (state.is_cancelling() or state.is_cancelled()) for state in states)


def is_ended_by_worker() -> bool:
    """Return whether a worker started this process; it sets the state Cancelled after the process has ended."""
    return os.environ.get("PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS", "true").lower() == "false"


def leave_to_worker(message: str) -> NoReturn:
    """End the current, cancelled flow run without setting its state: its worker does that afterwards.

    If the state were Cancelled while the process is still ending, the worker would cancel a Retry of that moment. The
    worker's own message is uninformative. A detached process, which the worker does not end, replaces it by the run's
    message.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only inside a flow"
    run = context.flow_run
    subprocess.Popen(
        [sys.executable, "-m", "tasks.cancelling", str(run.id), str(runtime.flow_run.run_count), message],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    run.state = Cancelling(message=message)  # only locally, not on the server: it is the last line of the log
    raise Abort(message)  # Prefect's exception that ends a run without setting a state


def _put_back(flow_run: UUID, attempt: int, message: str) -> None:
    """Wait for the worker to set Cancelled, and replace its message; if the worker is gone, set the state."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_flow_run(flow_run)
            state = found.state
            if found.run_count != attempt or state is None or not (state.is_cancelling() or state.is_cancelled()):
                return  # it was retried
            if state.is_cancelled() or time.monotonic() > deadline:
                client.set_flow_run_state(flow_run, Cancelled(message=message), force=True)
                return
            time.sleep(0.5)


if __name__ == "__main__":
    _put_back(UUID(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

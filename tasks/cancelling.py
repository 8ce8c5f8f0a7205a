"""Cancelled runs: their tasks and flows end as Cancelled, and their state says where a retry continues."""

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

P = ParamSpec("P")
R = TypeVar("R")

CANCELLED = "cancelled; Retry continues where it stopped"
PATIENCE_SECONDS = 120.0
"""How long a worker may take to mark the run as Cancelled: 30 s for saving, and then it loads the flow for its hooks"""


def cancellable(function: Callable[P, R]) -> Callable[P, R | State[R]]:
    """Let the function of a task or flow end as Cancelled, not as Crashed, where a person has cancelled its run.

    A flow gets that state from a task in place of its result, and a CancelledRun from another flow that it calls.
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
        except CancelledRun as cancelled:  # a task or subflow of this run has ended so
            message = str(cancelled)
        except TerminationSignal:
            if not is_cancelling():
                raise
            message = CANCELLED
        return Cancelled(message=message)

    return ended


def is_cancelling() -> bool:
    """Return whether a person has cancelled the current flow run, or the one that called it."""
    runs = (runtime.flow_run.id, runtime.flow_run.root_flow_run_id)
    try:
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(UUID(str(run))).state for run in dict.fromkeys(runs) if run]
    except Exception as error:  # without its server a run ends as by any other SIGTERM
        raise_if_interrupted(error)
        return False
    return any(state is not None and (state.is_cancelling() or state.is_cancelled()) for state in states)


def is_ended_by_worker() -> bool:
    """Return whether the process was started by a worker, which sets the state Cancelled once the process has ended."""
    return os.environ.get("PREFECT__ENABLE_CANCELLATION_AND_CRASHED_HOOKS", "true").lower() == "false"


def leave_to_worker(message: str) -> NoReturn:
    """End the current flow run, which was cancelled, without setting its state: its worker does that afterwards.

    Were it Cancelled while its process is still ending, a Retry of that moment would be cancelled by the worker. The
    worker's own message says nothing, so a process that outlives this one, and that the worker doesn't end, puts the
    run's message in its place.
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
    run.state = Cancelling(message=message)  # here, not on the server: with it the log ends
    raise Abort(message)  # of Prefect's exceptions the one that ends a run without a state


def _put_back(flow_run: UUID, attempt: int, message: str) -> None:
    """Wait for the worker's Cancelled, and give it the message; for a worker that has gone away, set it."""
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

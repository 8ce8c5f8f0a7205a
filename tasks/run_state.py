"""A named Running state, which shows in the list of runs that a flow run is waiting for disk space."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.states import Running

from musicgen_core.errors import raise_if_interrupted
from tasks.advice import in_form

logger = logging.getLogger(__name__)
WAITING = "WaitingForDisk"
"""Name of a state of type Running: the process is alive, sends heartbeats, and can be cancelled"""


def show_waiting(reason: str | None) -> None:
    """Set the state of the current flow run and of its parent to `WaitingForDisk`; without a reason, to Running."""
    state: State[Any] = Running(name=WAITING, message=in_form(reason)) if reason is not None else Running()
    try:
        runs = [runtime.flow_run.id, runtime.flow_run.root_flow_run_id]
        with get_client(sync_client=True) as client:
            for run in dict.fromkeys(UUID(str(run)) for run in runs if run):
                # Otherwise the server counts it as another start of the run, of which automations allow three.
                policy = client.read_flow_run(run).empirical_policy
                client.update_flow_run(run, empirical_policy=policy.model_copy(update={"resuming": True}))
                client.set_flow_run_state(run, state)  # not forced: a run that is being cancelled stays so
    except Exception as error:  # an unreachable server must not end the training run
        raise_if_interrupted(error)
        logger.warning("the state of the run could not be set (%s: %s)", type(error).__name__, error)

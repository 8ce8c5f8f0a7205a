"""Task runners for mapped tasks: threads of the flow's process, or an existing Dask cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from musicgen_core.errors import ConfigError
from musicgen_core.language import message


def task_runner(
    kind: Literal["threads", "dask"], workers: int, dask_address: str | None, shared: str
) -> TaskRunner[Any]:
    """Return a task runner that is not started yet.

    Args:
        kind: threads or dask.
        workers: tasks at a time, in threads; a Dask cluster runs one per thread of its workers.
        dask_address: address of the cluster's scheduler.
        shared: a directory that the cluster's workers must share with this process.

    Raises:
        ConfigError: an address without dask or dask without an address, prefect-dask is not installed, or the cluster
            can't run the tasks.
    """
    if (kind == "dask") != bool(dask_address):
        raise ConfigError(
            message("task_runner is {kind} and dask_address is {value}", kind=kind, value=dask_address or "not given"),
            message("To use a Dask cluster give both: --task-runner dask --dask-address tcp://HOST:8786"),
        )
    if not dask_address:
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        from prefect_dask import DaskTaskRunner

        from flows.dask_cluster import check_cluster
    except ImportError as error:
        raise ConfigError(
            message("prefect-dask is not installed"),
            message("Install it: uv sync --extra dask, or pip install prefect-dask"),
        ) from error
    check_cluster(dask_address, shared)
    return DaskTaskRunner(address=dask_address)


def call_everywhere(runner: Any, function: Callable[..., Any], *arguments: Any) -> None:
    """Call `function` in every process that runs tasks of a started runner. A cluster that is gone is ignored."""
    function(*arguments)
    if not isinstance(runner, ThreadPoolTaskRunner):
        with suppress(Exception):
            runner.client.run(function, *arguments, on_error="ignore")

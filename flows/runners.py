"""Where mapped tasks run: in threads of the flow's process, or on a Dask cluster that is there already."""

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
    """A task runner, not started yet.

    Args:
        kind: threads or dask.
        workers: tasks at a time; a Dask cluster has as many as its own threads.
        dask_address: the cluster's scheduler.
        shared: a directory that the cluster's workers must have in common with this process.

    Raises:
        ConfigError: an address without dask or the other way round, prefect-dask is not installed, or the cluster
            can't do our tasks.
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
    """Call `function` in every process where tasks of a started runner run. A cluster that is gone is passed over."""
    function(*arguments)
    if not isinstance(runner, ThreadPoolTaskRunner):
        with suppress(Exception):
            runner.client.run(function, *arguments, on_error="ignore")

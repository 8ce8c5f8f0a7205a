"""Task runners for mapped tasks: threads of the flow's process, or an existing Dask cluster.

A cluster is checked before the first task is submitted: Dask itself would retry and wait instead of failing. Dask is
an optional dependency.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from typing import Any, Literal
from uuid import uuid4

import prefect
from prefect.client.orchestration import get_client
from prefect.context import hydrated_context, serialize_context
from prefect.settings import get_current_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.language import message

ANSWER_SECONDS = 5
REHEARSAL_SECONDS = 60  # a worker may have to import Prefect, from a slow disk


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
    except ImportError as error:
        raise ConfigError(
            message("prefect-dask is not installed"),
            message("Install it: uv sync --extra dask, or pip install prefect-dask"),
        ) from error
    _check_cluster(dask_address, shared)
    return DaskTaskRunner(address=dask_address)


def call_everywhere(runner: Any, function: Callable[..., Any], *arguments: Any) -> None:
    """Call `function` in every process that runs tasks of a started runner. A cluster that is gone is ignored."""
    function(*arguments)
    if not isinstance(runner, ThreadPoolTaskRunner):
        with suppress(Exception):
            runner.client.run(function, *arguments, on_error="ignore")


def _check_cluster(address: str, shared: str) -> None:
    """Check that a scheduler listens at `address`, and that each of its workers could start a task.

    A cluster without workers passes: it may start them on demand.

    Args:
        address: the scheduler's address.
        shared: a directory that this process and all workers must share.

    Raises:
        ConfigError: no scheduler listens there, or a worker could not start a task.
    """
    if get_current_settings().api.url is None:  # each worker would start a temporary server of its own
        raise ConfigError(
            message("a Dask cluster needs a Prefect server that its workers can reach, and PREFECT_API_URL is not set"),
            message(
                "Start a server (uv run musicgen-flows up, or uv run prefect server start --host 0.0.0.0) "
                "and set PREFECT_API_URL"
            ),
        )
    try:
        found = asyncio.run(_identify(address))
    except Exception as error:  # another protocol may send anything: HTTP parses as a frame of 3 EiB
        reason = f"no answer in {ANSWER_SECONDS} s" if isinstance(error, TimeoutError) else _one_line(error)
        raise ConfigError(
            message("no Dask scheduler at {address}: {reason}", address=address, reason=reason),
            message("Start one with `dask scheduler`, and give the address that it shows, such as tcp://HOST:8786"),
        ) from error
    if found != "Scheduler":
        raise ConfigError(
            message("at {address} is a Dask {kind}", address=address, kind=found.lower()),
            message("Give the address of its scheduler"),
        )
    with _marker(shared) as marker:
        problems = _rehearse_everywhere(address, marker)
    if problems:
        worker, problem = min(problems.items())
        raise ConfigError(
            message(
                "{number} of the Dask workers can't do the tasks; {worker}: {problem}",
                number=len(problems),
                worker=worker,
                problem=problem,
            ),
            message(
                "A worker needs what is installed here ({versions}, dask {version}), the Prefect "
                "server at {url}, and the same {shared}",
                versions=_versions(),
                version=version("dask"),
                url=get_current_settings().api.url,
                shared=shared,
            ),
        )


@contextmanager
def _marker(folder: str) -> Iterator[str]:
    """Create a temporary file in a local or remote directory; workers check that they see it."""
    marker = storage.as_path(folder) / f".seen-by-dask-{uuid4().hex}"
    storage.write_text(marker, "")
    try:
        yield str(marker)
    finally:
        marker.unlink(missing_ok=True)


async def _identify(address: str) -> str:
    """Return the type of the Dask server at an address: Scheduler, Worker or Nanny."""
    import distributed
    from distributed.core import rpc

    security = distributed.Security().get_connection_args("client")
    async with asyncio.timeout(ANSWER_SECONDS), rpc(address, connection_args=security) as remote:
        return str((await remote.identity())["type"])


def _rehearse_everywhere(address: str, marker: str) -> dict[str, str]:
    """Return the problems that keep tasks from starting, by worker."""
    import distributed

    with distributed.Client(address, timeout=ANSWER_SECONDS, set_as_default=False) as client:
        answers = client.run(_rehearse, serialize_context(), _versions(), marker, on_error="return")
    return {worker: _one_line(answer) for worker, answer in answers.items() if answer}


async def _rehearse(context: dict[str, Any], versions: str, marker: str) -> str:
    """Start on a worker as a task does; return the problem, or an empty string.

    To call this at all, the worker must be able to import this project and the flow. Problems are returned instead of
    raised: Dask would write `context`, which may hold the server's API key, to the worker's log.
    """
    if versions != _versions():
        return f"it has {_versions()}"
    try:
        await asyncio.wait_for(asyncio.to_thread(_begin, context, marker), REHEARSAL_SECONDS)
    except Exception as error:
        return _one_line(error)
    return ""


def _begin(context: dict[str, Any], marker: str) -> None:
    importlib.import_module("tasks.tokenizing")
    with hydrated_context(context), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
        if error is not None:
            raise OSError(f"it can't reach the Prefect server: {error}")
    try:
        storage.as_path(marker).read_bytes()  # reading, because listings may be cached
    except OSError as error:
        raise OSError(f"it doesn't see a file that was just written here ({error})") from error


def _versions() -> str:
    """Return the versions that must match: contexts are pickled, and functions travel with their bytecode."""
    return f"Python {sys.version_info.major}.{sys.version_info.minor}, prefect {prefect.__version__}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split()) or type(error).__name__

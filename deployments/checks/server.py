"""Check that the Prefect API answers, has what this project needs, and lists its runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import httpx

from deployments.checks.finding import Finding, describe
from deployments.environment import is_healthy
from deployments.registering import DEPLOYMENTS, POOL, QUEUE, TOKENIZING_QUEUE, read_automations
from flows.startup import BLOCKS
from musicgen_core.language import message
from musicgen_core.wording import named

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

REQUEST_SECONDS = 5.0
CONNECT_SECONDS = 15.0
"""A busy server is slow to answer, not to accept a connection."""
API = "Prefect API"
WORKERS = message("workers")

NEWEST_RUNS = {"sort": "EXPECTED_START_TIME_DESC", "limit": 200}
"""The runs that are looked at, as many as the server lists in one answer"""
SHOWN_RUNS = 5
RUNS = message("runs")


@dataclass(frozen=True)
class Server:
    """Findings about the configured server, and its variables and blocks.

    Attributes:
        answers: whether the server answers and can be used.
        variables: Prefect variables, such as `musicgen_runs`, with their values.
        keys: names of the stored Secret blocks. Their contents are not requested.
    """

    findings: list[Finding]
    answers: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    keys: frozenset[str] = frozenset()


def look_at_server() -> Server:
    """Query the configured server. No server is started."""
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if url is None:
        found = message(
            "no server is running here and none is set: commands start a temporary one, and nothing can be scheduled"
        )
        fix = message("For a server, a worker and the UI: uv run musicgen-flows up")
        return Server([Finding(API, "warning", found, fix)])
    version = ask_version(REQUEST_SECONDS)
    if isinstance(version, Finding):
        return Server([version])
    with _impatient_client(REQUEST_SECONDS) as client:
        findings = [
            _check_version(version, url),
            *_check_registered(client),
            *check_workers(client),
            *check_run_lists(client),
        ]
        variables = {variable.name: str(variable.value) for variable in client.read_variables()}
        return Server(findings, True, variables, frozenset(_stored(client, BLOCKS.values())))


def ask_version(seconds: float) -> str | Finding:
    """Return the version of the configured API, or the problem with it."""
    from prefect.settings import get_current_settings

    url = str(get_current_settings().api.url)
    try:
        with _impatient_client(seconds) as client:
            version = client.api_version()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:  # ValueError: the answer is not JSON
        return _explain(error, url)
    return version if isinstance(version, str) else _explain(ValueError("its version is no text"), url)


@contextmanager
def _impatient_client(seconds: float) -> Iterator[SyncPrefectClient]:
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings={"timeout": timeout}, sync_client=True) as client,
    ):
        yield client


def _explain(error: Exception, url: str) -> Finding:
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else None
    if status in (401, 403):
        found = message("{url} refuses the login (HTTP {status})", url=url, status=status)
        fix = message(
            "Set the user and password that the server has in PREFECT_SERVER_API_AUTH_STRING: "
            "export PREFECT_API_AUTH_STRING=USER:PASSWORD"
        )
    elif isinstance(error, httpx.ReadTimeout):
        found = message(
            "the server at {url} accepts connections but does not answer ({reason})", url=url, reason=describe(error)
        )
        fix = message(
            "It may be overloaded: look at the machine that it runs on, and try again. If that does not help, "
            "restart the server"
        )
    elif isinstance(error, httpx.TransportError):
        found = message("nothing answers at {url} ({reason})", url=url, reason=describe(error))
        fix = message(
            "Start the server with uv run musicgen-flows up, name another one with export PREFECT_API_URL=…, "
            "or do without one: unset PREFECT_API_URL"
        )
    else:
        said, api = f"HTTP {status}" if status else describe(error), f"{url.rstrip('/')}/api"
        found = message("what answers at {url} is not Prefect's API ({reason})", url=url, reason=said)
        fix = message(
            "Name the API: export PREFECT_API_URL={url}", url=api if is_healthy(api) else "http://HOST:4200/api"
        )
    return Finding(API, "problem", found, fix)


def _check_version(version: str, url: str) -> Finding:
    from prefect import __version__

    if version == __version__:
        return Finding(API, "ok", f"{version}, {url}")
    return Finding(
        API,
        "warning",
        message(
            "{version} at {url}, and {here} here: other versions may not understand each other",
            version=version,
            url=url,
            here=__version__,
        ),
        message("Install {version} on the server too, from this project: uv sync", version=__version__),
    )


def _check_registered(client: SyncPrefectClient) -> Iterator[Finding]:
    deployments = {deployment.name for deployment in client.read_deployments(limit=200)}
    unstartable = message("the UI can't start them, commands work")
    yield _compare(message("deployments"), DEPLOYMENTS, deployments, unstartable)
    wanted = [str(automation["name"]) for automation in read_automations()]
    automations, without = message("automations"), message("runs that crash while nobody looks are not restarted")
    found = {name: client.read_automations_by_name(name) for name in wanted}
    paused = [name for name in wanted if found[name] and not any(automation.enabled for automation in found[name])]
    if not paused or not all(found.values()):
        yield _compare(automations, wanted, [name for name in wanted if found[name]], without)
    if paused:
        found_paused = message("paused: {names}; {without}", names=", ".join(paused), without=without)
        fix = message("Switch them on again on the UI's Automations page, if nobody paused them on purpose")
        yield Finding(automations, "warning", found_paused, fix)


def _compare(what: str, wanted: Sequence[str], there: Collection[str], without: str) -> Finding:
    missing = [name for name in wanted if name not in there]
    if not missing:
        return Finding(what, "ok", ", ".join(wanted))
    found = message("not on this server: {names}; {without}", names=", ".join(missing), without=without)
    return Finding(what, "warning", found, message("Register them on the server's machine: uv run musicgen-flows up"))


def check_workers(client: SyncPrefectClient, wanted: Sequence[str] = (QUEUE, TOKENIZING_QUEUE)) -> Iterator[Finding]:
    """Check that online workers take runs from all of these queues."""
    from prefect.client.schemas.objects import WorkerStatus, WorkQueueStatus
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(POOL)
        workers = client.read_workers_for_work_pool(POOL)
        queues = client.read_work_queues(POOL)
    except ObjectNotFound:
        found = message("there is no work pool {pool}: the UI can't start jobs, commands work", pool=POOL)
        fix = message("Create it: uv run prefect work-pool create {pool} --type process", pool=POOL)
        yield Finding(WORKERS, "warning", found, fix)
        return
    if pool.is_paused:
        found = message("the work pool {pool} is paused: jobs wait", pool=POOL)
        fix = message("Let them start: uv run prefect work-pool resume {pool}", pool=POOL)
        yield Finding(message("work pool"), "warning", found, fix)
    online = [worker.name for worker in workers if worker.status == WorkerStatus.ONLINE]
    served = {queue.name for queue in queues if queue.status == WorkQueueStatus.READY} if online else set()
    idle = [queue for queue in wanted if queue not in served]
    if not idle:
        found = message("online in the pool {pool}: {names}", pool=POOL, names=", ".join(online))
        yield Finding(WORKERS, "ok", found)
        return
    found = message(
        "no worker is online in the pool {pool} for the queue {queues}: jobs there wait",
        pool=POOL,
        queues=", ".join(idle),
    )
    fix = message(
        "Start one: uv run prefect worker start --pool {pool} --limit 1 --work-queue {queue}", pool=POOL, queue=idle[0]
    )
    yield Finding(WORKERS, "warning", found, fix)


def _stored(client: SyncPrefectClient, names: Iterable[str]) -> Iterator[str]:
    from prefect.exceptions import ObjectNotFound

    for name in names:
        try:
            client.read_block_document_by_name(name, "secret", include_secrets=False)
        except ObjectNotFound:
            continue
        yield name


def check_run_lists(client: SyncPrefectClient) -> list[Finding]:
    """Name the newest runs that can't be listed, with the commands that delete them. No finding if all can be.

    For an integer of more than 64 bits among a run's parameters, the server answers every list of runs with status
    500, as its UI requests them. This project refuses such numbers; Prefect doesn't.
    """
    if _can_list(client, NEWEST_RUNS):
        return []
    newest = client.request("POST", "/ui/flow_runs/history", json=NEWEST_RUNS).json()  # without their parameters
    broken = _unlistable(client, [str(run["id"]) for run in newest])
    if not broken:
        found = message("the server can't list its runs (HTTP 500)")
        return [Finding(RUNS, "problem", found, message("Its log names the error"))]
    deleting = [f"uv run prefect flow-run delete {run}" for run in broken[:SHOWN_RUNS]]
    return [
        Finding(
            RUNS,
            "problem",
            message(
                "the server can't list runs, in the UI either (HTTP 500), because of {runs}: a parameter may be an "
                "integer over 64 bits",
                runs=named(broken),
            ),
            " && ".join([f"export PREFECT_API_URL={client.api_url}", *deleting]),
        )
    ]


def _unlistable(client: SyncPrefectClient, ids: Sequence[str]) -> list[str]:
    """Return the runs that break a list, found by bisection."""
    if not ids or _can_list(client, {"flow_runs": {"id": {"any_": list(ids)}}}):
        return []
    if len(ids) == 1:
        return list(ids)
    middle = len(ids) // 2
    return _unlistable(client, ids[:middle]) + _unlistable(client, ids[middle:])


def _can_list(client: SyncPrefectClient, chosen: Mapping[str, Any]) -> bool:
    try:
        # The server closes a connection after status 500, so each request opens a new one.
        client.request("POST", "/flow_runs/filter", json=chosen, headers={"Connection": "close"})
    except httpx.HTTPStatusError as error:
        if error.response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        raise
    return True

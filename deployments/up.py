"""`musicgen-flows up`: a Prefect server, workers, deployments and automations, on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import IO, Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import WorkerStatus
from prefect.context import refresh_global_settings_context
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry
from prefect.variables import Variable

from deployments.activity import working
from deployments.addresses import addresses, files_addresses, warn_of_others
from deployments.api import check_database, check_home
from deployments.checks.finding import redact
from deployments.checks.machine import ask_smi
from deployments.checks.server import check_run_lists
from deployments.console import print_outcome, print_rows, print_text
from deployments.environment import LOCAL_API, is_healthy, is_quiet
from deployments.file_server import Serving, password, serving
from deployments.parameters import DEFAULT_HOST, UpParameters
from deployments.process_output import LOGGING, follow_errors, follow_output
from deployments.processes import Command, Part, Parts
from deployments.registering import (
    DEPLOYMENTS,
    PLACES,
    POOL,
    QUEUE,
    TOKENIZING_QUEUE,
    read_automations,
    register,
    set_defaults,
    set_places,
    stored_places,
)
from deployments.weekly import describe_next
from musicgen_core.errors import MusicgenError
from musicgen_core.language import message, say
from musicgen_core.wording import counted, joined
from tasks.forms import form_link
from tasks.next_steps import Made, Outcome, Step
from tasks.served import VARIABLE, stored_file_server

LOOK_SECONDS = 30.0
"""Interval between checks for runs that should have been restarted."""

SCHEDULER_SECONDS = 20.0
"""Time for the server to schedule a deployment that was just registered. It checks every 5 seconds."""

RESTARTS = "musicgen: crashed trainings start again"
"""Name of the automation that restarts crashed training runs"""
PATIENCE = timedelta(seconds=60)  # the automation acts first
HORIZON = timedelta(hours=1)  # restarting runs that crashed before that would surprise people


def up(parameters: dict[str, Any]) -> int:
    options = UpParameters(**parameters)
    check_home()
    api, ui = addresses(options.host, options.port)
    _use_server(api)
    workers = worker_commands(options.workers, visible_gpus())
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored after a start in a shell's background
    with contextlib.ExitStack() as stack:
        try:
            host = stack.enter_context(_host_of_running(options.host, options.port))
            if host is not None:
                api, ui = addresses(host, options.port)
                _use_server(api)
                print_text(say("musicgen-flows up runs already, with its server at {api}: that one is used", api=api))
                if options.workers is not None or options.host not in (DEFAULT_HOST, host):
                    print_text(
                        say("--host and --workers count when it starts: stop the one that runs first (Ctrl-C there)")
                    )
                _wait_for(api, lambda: True)
                rows = _register(options)
                show(api, {**rows, message("workers"): "; ".join(_running_workers())})
                print_outcome(_first_step(ui), on_server=True)
                return 0
            warn_of_others(options.host, options.port, options.chosen_files_port, password() is not None)
            server = stack.enter_context(_server(api, options.host, options.port))
            rows = _register(options)
            files = stack.enter_context(_files(options, api, ui))
            if files is not None:
                files.serve(rows)
            print_text(
                say("Starting {workers} of the pool {pool} …", workers=counted(len(workers), "worker"), pool=POOL)
            )
            started = stack.enter_context(
                Parts(workers, subprocess.PIPE, on_start=follow_output) if is_quiet() else Parts(workers)
            )
            show(api, {**rows, message("workers"): joined(_described(*worker) for worker in workers)})
            print_outcome(_first_step(ui), on_server=True)
            print_text(say("Ctrl-C stops everything."))
            _watch(server, started, files)
        except KeyboardInterrupt:
            print_text(say("Stopping the workers and the server; training runs save first …"))
    print_text(say("Stopped."))
    return 0


@contextlib.contextmanager
def _host_of_running(host: str, port: int) -> Iterator[str | None]:
    """Yield the host of the running `up` with this port. If there is none, take the port's lock and yield None."""
    with open(get_current_settings().home / f"musicgen-flows-up-{port}.lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            yield lock.read() or host  # empty if it has just started
        else:
            lock.truncate(0)
            lock.write(host)
            lock.flush()
            yield None


def _use_server(api: str) -> None:
    """Make this process and its children use a server. Prefect has read its settings at import."""
    os.environ["PREFECT_API_URL"] = api
    refresh_global_settings_context()


@contextlib.contextmanager
def _server(api: str, host: str, port: int) -> Iterator[list[Part]]:
    """Start a server. If one is running already, use it and leave it running."""
    if is_healthy(api):
        print_text(say("Using the Prefect server that runs at {api}", api=api))
        yield []
        return
    check_database()
    command = ["server", "start", "--host", host, "--port", str(port)]
    with contextlib.ExitStack() as stack:
        printed = None
        if is_quiet():  # from then on only its errors are shown, one line each
            printed = stack.enter_context(tempfile.TemporaryFile())
            parts = Parts([(command, LOGGING)], printed, subprocess.PIPE)
        else:
            parts = Parts([(command, {})])
        [server] = stack.enter_context(parts).running
        if server.stderr is not None:
            follow_errors(server.stderr)
        with working(say("starting the Prefect server; its first start makes a database")):
            _wait_for(api, lambda: server.poll() is None, printed)
        yield [server]


def _wait_for(api: str, may_come: Callable[[], bool], printed: IO[bytes] | None = None) -> None:
    """Wait until a server answers.

    Args:
        api: URL of the API.
        may_come: returns whether the server may still start.
        printed: standard output of the server.

    Raises:
        MusicgenError: the server does not start. The message has the reason that it printed, if any.
    """
    deadline = time.monotonic() + 180
    while not is_healthy(api):
        if not may_come() or time.monotonic() > deadline:
            reason = _refusal(printed)
            raise MusicgenError(
                message(
                    "the Prefect server did not start at {api}{reason}",
                    api=api,
                    reason=f" ({reason})" if reason else "",
                ),
                message("Another program may hold the port: try --port. To see why: uv run prefect server start"),
            )
        time.sleep(0.5)


def _refusal(printed: IO[bytes] | None) -> str:
    """Return why a server refused to start: its output, unless that is the banner of a server that did start."""
    if printed is None:
        return ""
    printed.seek(0)
    text = " ".join(printed.read().decode(errors="replace").split())
    return "" if "PREFECT_API_URL" in text else text


def _register(options: UpParameters) -> dict[str, str]:
    """Register everything, and return rows for `show`."""
    with working(say("setting the locations")) as activity:  # first, since an existing deployment can be run
        places = set_places({name: getattr(options, name) for name in PLACES})
        defaults = set_defaults(options.model, options.device)
        register()
        _warn_of_unlistable_runs()
        activity.say(say("looking when the next retraining is"))
        return {**places, **defaults, message("next retraining"): describe_next(SCHEDULER_SECONDS)}


@contextlib.contextmanager
def _files(options: UpParameters, api: str, ui: str) -> Iterator[Serving | None]:
    """Start the file server. Yield None if its port is taken."""
    local, url = files_addresses(api, ui, options.chosen_files_port)
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(serving(options.host, options.chosen_files_port, url, local))
        except OSError as error:
            print_text(
                say(
                    "Tokens, runs and music can't be opened in the browser: port {port} can't be had "
                    "({reason}). Another one: uv run musicgen-flows up --files-port PORT",
                    port=options.chosen_files_port,
                    reason=error.strerror,
                ),
                "yellow",
            )
            Variable.unset(VARIABLE)  # left by an `up` that was killed
            server = None
        yield server


def visible_gpus() -> list[str]:
    """Return the names of this machine's GPUs for CUDA_VISIBLE_DEVICES, without loading CUDA."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() not in ("", "-1")]
    return [str(index) for index in range(len(ask_smi().gpus))]


def worker_commands(asked: int | None, gpus: Sequence[str]) -> list[Command]:
    """Return the commands of the workers: `asked`, or one per GPU, for the default queue, and one for tokenizing.

    Each takes one job at a time. Several are distributed over the GPUs, and tokenizing gets the last one. A single
    worker sees all GPUs.
    """
    count = asked or max(1, len(gpus))

    def pinned(number: int) -> dict[str, str]:
        return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus and count > 1 else {}

    workers = [_worker(f"gpu-{number}", QUEUE, pinned(number)) for number in range(count)]
    return [*workers, _worker(TOKENIZING_QUEUE, TOKENIZING_QUEUE, pinned(len(gpus) - 1))]


def _worker(name: str, queue: str, environment: dict[str, str]) -> Command:
    start = ["worker", "start", "--pool", POOL, "--type", "process", "--work-queue", queue, "--limit", "1"]
    return [*start, "--name", f"{platform.node()}-{name}"], environment


def _running_workers() -> list[str]:
    with get_client(sync_client=True) as client:
        return sorted(one.name for one in client.read_workers_for_work_pool(POOL) if one.status == WorkerStatus.ONLINE)


def _described(command: Sequence[str], environment: Mapping[str, str]) -> str:
    gpu = environment.get("CUDA_VISIBLE_DEVICES")
    queue = command[command.index("--work-queue") + 1]
    return message("{worker}, queue {queue}{gpu}", worker=command[-1], queue=queue, gpu=f", GPU {gpu}" if gpu else "")


def show(api: str, rows: Mapping[str, str]) -> None:
    """Print the table of a running `up`, to which rows are added, and how other terminals find its server."""
    fixed = [(message("deployments"), ", ".join(DEPLOYMENTS))]
    print_rows(message("Up"), [*fixed, *rows.items()])
    if api != LOCAL_API:  # which the other commands find automatically
        print_text(say("In other terminals first: export PREFECT_API_URL={api}", api=api))


def _first_step(ui: str) -> Outcome:
    tokenize = Step(message("Tokenize the archives"), "tokenize")
    form = form_link(str(tokenize.deployment), {})
    made = [Made(message("Prefect UI"), ui)]
    if server := stored_file_server():
        made.append(Made(message("tokens, runs and music, to open and hear"), f"{server.url}/"))
    if form:
        name = message("run form of {deployment}", deployment=tokenize.deployment)
        made.append(Made(name, f"{ui}{form}"))
    return Outcome(tuple(made), (tokenize,))


def _warn_of_unlistable_runs() -> None:
    # A server that is too busy to answer is no reason to stop.
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        for finding in check_run_lists(client):
            text = say("{found}. To fix: {fix}", found=finding.found, fix=finding.fix)
            print_text(redact(text), "yellow")


def restart_missed(client: SyncPrefectClient, patience: timedelta = PATIENCE) -> list[str]:
    """Reschedule runs that the automation should have restarted, and return their names.

    The event of a crash can get lost or delayed. With SQLite the server drops an event after four failed attempts
    ("database is locked", mostly just after its start). If a run crashes less than five minutes after its start and the
    server was restarted in between, Prefect's ordering of events delays the event by fifteen minutes. Nothing is
    restarted if the automation is paused or does not exist.

    Args:
        patience: time since the crash during which a run is left to the automation.
    """
    if not any(automation.enabled for automation in client.read_automations_by_name(RESTARTS)):
        return []
    definition = next(automation for automation in read_automations() if automation["name"] == RESTARTS)
    trigger, action = definition["trigger"], definition["actions"][0]
    now = datetime.now(UTC)
    crashed = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate(
            {"state": {"type": {"any_": ["CRASHED"]}}, "end_time": {"after_": now - HORIZON, "before_": now - patience}}
        ),
        deployment_filter=DeploymentFilter.model_validate(
            {"name": {"any_": trigger["match_related"]["prefect.resource.name"]}}
        ),
    )
    missed = [run for run in crashed if str(run.run_count) in trigger["match"]["prefect.run-count"]]
    for run in missed:
        client.set_flow_run_state(run.id, AwaitingRetry(message=action["message"]))
    return [run.name for run in missed]


def _look(files: Serving | None) -> None:
    """Restart missed runs, and serve the locations that the variables name by now."""
    # A server that is too busy to answer is asked again the next time.
    with contextlib.suppress(httpx.HTTPError), get_client(sync_client=True) as client:
        if files is not None:
            files.serve(stored_places())
        for name in restart_missed(client):
            print_text(say("Crashed, and starts again: {name}", name=name))


def _watch(server: Sequence[Part], workers: Parts, files: Serving | None) -> None:
    """Watch the processes until the server ends. Workers that end are restarted; other workers' runs continue."""
    looked = time.monotonic()
    while all(process.poll() is None for process in server):
        for command in workers.restart_ended():
            print_text(say("A worker ended unexpectedly and was started again: {worker}", worker=_described(*command)))
        if time.monotonic() - looked > LOOK_SECONDS:
            _look(files)
            looked = time.monotonic()
        time.sleep(0.5)
    raise MusicgenError(message("the Prefect server ended unexpectedly"), message("Its last lines above say why"))

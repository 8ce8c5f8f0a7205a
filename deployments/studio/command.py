"""`musicgen-flows studio`: the model in memory, and the page until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx

from deployments.activity import working
from deployments.addresses import EVERYWHERE, is_of_this_machine
from deployments.api import has_api
from deployments.console import print_line, print_text
from deployments.file_server import listening
from deployments.hosts import names_of_machine
from deployments.inputs import check_adapters
from deployments.parameters import StudioParameters
from deployments.studio.access import Guard, Sessions
from musicgen_core import storage
from musicgen_core.config import DEFAULT_MODEL
from musicgen_core.errors import ConfigError
from musicgen_core.language import message, say
from musicgen_core.model.weighted_adapters import parse_adapters
from musicgen_core.stages import announce_torch
from tasks.studio_link import StudioServer


def studio(parameters: dict[str, Any]) -> int:
    given = StudioParameters(**parameters)
    _check_host(given)
    with working(message("loading the studio")):
        check_adapters(given.adapter)
        announce_torch()
        from deployments.studio.adapters import offered_adapters
        from deployments.studio.folder import MusicFolder
        from deployments.studio.jobs import Studio
        from deployments.studio.server import Served, make_app
        from musicgen_core.generation.prompts import Prompt
        from musicgen_core.generation.request import RenderRequest
        from musicgen_core.generation.resident import load_model

    adapters, runs = parse_adapters(given.adapter), storage.as_path(given.runs)
    folder = MusicFolder(given.output)
    request = RenderRequest(
        out=str(folder.path),
        prompts=[Prompt(prompt="")],
        model=given.model or None,
        adapters=adapters,
        device=given.device,
        default_model=DEFAULT_MODEL,
    )
    stopping = threading.Event()
    queue = Studio(partial(load_model, request, keep_base=True))
    served = Served(
        studio=queue,
        folder=folder,
        offered=lambda: offered_adapters(adapters, runs, queue.model.model.name if queue.model else ""),
        is_stopping=stopping.is_set,
    )
    url, local = _addresses(given.host, given.port)
    app = make_app(served, Sessions(given.chosen_password), names_of_machine(url))
    try:
        with _listening(app, given), _published(StudioServer(url, local)):
            queue.start()
            with working(message("loading the model")):
                while not queue.is_ready.wait(0.5):
                    pass
            if queue.error is not None:
                raise queue.error
            print_text(say("The studio is ready. Open it in a browser:"))
            print_line(url)
            print_text(say("Everything that is made there lies in {folder}. Ctrl-C stops it.", folder=folder.path))
            threading.Event().wait()
    except KeyboardInterrupt:
        print_text(say("Stopping the studio …"))
    finally:
        stopping.set()
        queue.stop()
    print_text(say("Stopped."))
    return 0


def _check_host(given: StudioParameters) -> None:
    """Raise ConfigError if other machines could reach the studio without a password."""
    if not is_of_this_machine(given.host) and not given.chosen_password:
        raise ConfigError(
            message("other machines reach {host}, and there is no password", host=given.host),
            message(
                "Give one: export MUSICGEN_STUDIO_PASSWORD=…, or leave out --host, and elsewhere "
                "ssh -L {port}:127.0.0.1:{port} {machine}",
                port=given.port,
                machine=platform.node(),
            ),
        )


def _addresses(host: str, port: int) -> tuple[str, str]:
    """Return the URLs of the studio for browsers and for processes of this machine; a wildcard can't be called.

    MUSICGEN_STUDIO_URL is its URL behind a proxy.
    """
    local = EVERYWHERE.get(host, f"[{host}]" if ":" in host else host)
    own = f"http://{platform.node() if host in EVERYWHERE else local}:{port}"
    return (os.environ.get("MUSICGEN_STUDIO_URL") or own).rstrip("/") + "/", f"http://{local}:{port}"


@contextlib.contextmanager
def _listening(app: Guard, given: StudioParameters) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(listening(app, given.host, given.port))
        except OSError as error:
            raise ConfigError(
                message("port {port} can't be had ({reason})", port=given.port, reason=error.strerror),
                message("Another one: --port PORT"),
            ) from error
        yield


@contextlib.contextmanager
def _published(server: StudioServer) -> Iterator[None]:
    """Store the studio's address where runs find it, if a Prefect server is running."""
    is_published = False
    if has_api():
        with contextlib.suppress(httpx.HTTPError):
            server.publish()
            is_published = True
    try:
        yield
    finally:
        if is_published:
            with contextlib.suppress(httpx.HTTPError):  # the Prefect server may have ended already
                server.retract()

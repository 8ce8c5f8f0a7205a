"""The file server of `up`: tokens, runs and music, read-only, for the browser that shows the Prefect UI.

Starlette's StaticFiles resolves paths and serves ranges of bytes, which players need to seek. Here are the password,
the folders, and which of their files are served: `tasks/served.py`.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import platform
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import uvicorn
from prefect.settings import get_current_settings
from prefect.variables import Variable
from starlette.datastructures import Headers
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from musicgen_core import storage
from musicgen_core.errors import ConfigError
from tasks.served import GREETING, HEALTH, TYPES, VARIABLE, FileServer, is_served

FOLDERS = ("tokens", "runs", "output")
"""Places that are served; archives are not."""
_STOP_SECONDS = 5.0


class Folders(StaticFiles):
    """The first part of a path names one of the folders, the rest a file in it. There are no listings."""

    def __init__(self) -> None:
        super().__init__()
        self.served: Mapping[str, str] = {}

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        name, _, rest = path.partition(os.sep)
        if name not in self.served:
            return "", None
        folder = self.served[name]
        try:
            # It gives nothing for a path, or the target of a symbolic link, that is not in the folder.
            file, found = StaticFiles(directory=folder, check_dir=False).lookup_path(f"./{rest}")
        except OSError:
            return "", None
        return (file, found) if found and is_served(Path(file), Path(folder)) else ("", None)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(response, FileResponse):
            response.headers["content-type"] = TYPES[Path(full_path).suffix]
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["cache-control"] = "no-cache"  # a page that was written again is shown as it is now
        return response


class Application:
    """The ASGI application: the folders, behind HTTP's basic authentication if there is a password.

    Args:
        password: `user:password`; None for none. `/health` is served without it.
    """

    def __init__(self, folders: Folders, password: str | None) -> None:
        self._files = ExceptionMiddleware(folders)
        self._expected = base64.b64encode(password.encode()) if password else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._files
        if scope["path"] == HEALTH:
            answer = PlainTextResponse(GREETING)
        elif self._expected and not self._is_known(Headers(scope=scope).get("authorization", "")):
            challenge = {"www-authenticate": 'Basic realm="musicgen-flows", charset="UTF-8"'}
            answer = PlainTextResponse("a password is needed", 401, challenge)
        await answer(scope, receive, send)

    def _is_known(self, authorization: str) -> bool:
        kind, _, given = authorization.partition(" ")
        return kind.lower() == "basic" and hmac.compare_digest(given.strip().encode(), self._expected or b"")


class Serving:
    """A running file server; `serve` says which folders.

    Args:
        url, local: its addresses for browsers, and for processes of this machine.
    """

    def __init__(self, folders: Folders, url: str, local: str) -> None:
        self._folders, self._url, self._local = folders, url, local

    def serve(self, places: Mapping[str, str]) -> None:
        """Serve those of the places (by Prefect variable) that are local folders, and say so on the Prefect server."""
        found = {name: _local_folder(places.get(f"musicgen_{name}", "")) for name in FOLDERS}
        local = {name: folder for name, folder in found.items() if folder is not None}
        if local != self._folders.served:
            FileServer(self._url, self._local, platform.node(), local).publish()
            self._folders.served = local


def _local_folder(location: str) -> str | None:
    """Return a place without symbolic links; None if it is remote, relative, or no place at all."""
    with contextlib.suppress(ConfigError, OSError, RuntimeError):  # a symbolic link that leads back to itself
        path = storage.as_path(location)
        if storage.is_local(path) and Path(str(path)).is_absolute():
            return str(Path(str(path)).resolve())
    return None


@contextlib.contextmanager
def serving(host: str, port: int, url: str, local: str) -> Iterator[Serving]:
    """Serve files until the block is left.

    Raises:
        OSError: the port can't be had.
    """
    folders = Folders()
    with listening(Application(folders, password()), host, port):
        try:
            yield Serving(folders, url, local)
        finally:
            with contextlib.suppress(httpx.HTTPError):  # the Prefect server may be gone already
                Variable.unset(VARIABLE)


@contextlib.contextmanager
def listening(app: ASGIApp, host: str, port: int) -> Iterator[None]:
    """Run an application in a thread until the block is left.

    Raises:
        OSError: the port can't be had.
    """
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],), name="files", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = server.force_exit = True
        thread.join(_STOP_SECONDS)


def password() -> str | None:
    """Return the Prefect server's `user:password`, where this process knows one."""
    settings = get_current_settings()
    found = settings.server.api.auth_string or settings.api.auth_string
    return found.get_secret_value() if found else None

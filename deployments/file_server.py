"""The file server of `up`: tokens, runs and music, read-only, for the browser that shows the Prefect UI.

Starlette's StaticFiles resolves paths and serves byte ranges, which players need to seek. This module adds the folders
and the access rules: a request must name this machine as its host, and have the password if there is one. The served
file types are in `tasks/served.py`, the pages of folders in `deployments/listing.py`.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import os
import platform
import socket
import stat
import threading
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

import anyio.to_thread
import httpx
import uvicorn
from prefect.settings import get_current_settings
from prefect.variables import Variable
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.hosts import is_own_host, names_of_machine
from deployments.listing import PLACES, folder_page, missing_page, places_page
from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.escaping import csp_hashes, template_source
from tasks.served import GREETING, HEALTH, TYPES, VARIABLE, FileServer, is_open, is_served

FOLDERS = tuple(PLACES)
"""Places that are served; archives are not."""
_STOP_SECONDS = 5.0
_TEMPLATES = {"musicgen_core.generation": "index.html.j2", "musicgen_core.evaluation": "report.html.j2"}


class Folders(StaticFiles):
    """Static files below several folders. A path's first part names the folder, the rest a file or folder in it."""

    def __init__(self) -> None:
        super().__init__()
        self.served: Mapping[str, str] = {}

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        file, folder, found = self._find(path)
        return (file, found) if found and is_served(Path(file), Path(folder)) else ("", None)

    def _find(self, path: str) -> tuple[str, str, os.stat_result | None]:
        """Return the resolved path, its resolved folder, and the file's status: None outside of the folders."""
        name, _, rest = path.partition(os.sep)
        if name not in self.served:
            return "", "", None
        folder = self.served[name]
        try:
            # It finds nothing if the path, or the target of a symbolic link, is outside of the folder.
            file, found = StaticFiles(directory=folder, check_dir=False).lookup_path(f"./{rest}")
        except OSError:
            return "", "", None
        return file, folder, found

    async def get_response(self, path: str, scope: Scope) -> Response:
        try:
            return await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code != HTTPStatus.NOT_FOUND:
                raise
            if (listing := await anyio.to_thread.run_sync(self._listing, path, scope["path"])) is not None:
                return listing
            return await anyio.to_thread.run_sync(self._missing, path, scope)

    def _listing(self, path: str, asked: str) -> Response | None:
        """Return the page of a folder, or of all folders; `asked`: the URL's path. None if there is no such folder."""
        if path == os.curdir:
            return HTMLResponse(places_page(self.served), headers=_headers())
        try:
            folder, place = self._folder(path)
            if not place:
                return None
            if not asked.endswith("/"):  # relative, since a proxy may add a prefix to the path
                return RedirectResponse(f"./{quote(asked.rpartition('/')[2])}/")
            return HTMLResponse(folder_page(Path(folder), Path(place), path), headers=_headers())
        except (OSError, ValueError):  # unreadable; not a file name
            return None

    def _folder(self, path: str) -> tuple[str, str]:
        """Return the resolved path of a folder that is listed, and its served folder; empty if there is none.

        Raises:
            ValueError: the path is not a file name.
        """
        folder, place, found = self._find(path)
        if found and stat.S_ISDIR(found.st_mode) and is_open(Path(folder), Path(place)):
            return folder, place
        own = self.served.get(path, "")  # it may not exist yet
        return own, own

    def _missing(self, path: str, scope: Scope) -> Response:
        """Return the page for a path that leads to nothing: the same whether it does not exist or is not served."""
        parts, trail = Path(path).parts, ""
        with contextlib.suppress(ValueError):
            # From the top, so that a long path costs no more than what exists of it.
            for number in range(1, len(parts)):
                above = "/".join(parts[:number])
                if not self._folder(above)[1]:
                    break
                trail = above
        asked = scope.get("raw_path") or scope["path"].encode(errors="replace")  # undecoded, as browsers resolve links
        page = missing_page(scope["path"], trail, root="../" * (asked.count(b"/") - 1) or "./")
        return HTMLResponse(page, HTTPStatus.NOT_FOUND, headers=_headers())

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(response, FileResponse):
            response.headers["content-type"] = TYPES[Path(full_path).suffix]
        response.headers.update(_headers())
        return response


def _headers() -> dict[str, str]:
    return {
        "x-content-type-options": "nosniff",
        "cache-control": "no-cache",  # a page that was rewritten is reloaded
        "content-security-policy": page_policy(),
    }


@cache
def page_policy() -> str:
    """Return the Content-Security-Policy of every response. Only scripts of this project's pages may run.

    Scripts of other pages in the folders could read all files there and send them elsewhere.
    """
    sources = [template_source(package, name) for package, name in _TEMPLATES.items()]
    scripts = " ".join(dict.fromkeys(csp_hashes(source, "script") for source in sources))
    return (
        f"default-src 'none'; img-src 'self' data:; media-src 'self' data:; style-src 'unsafe-inline'; "
        f"script-src {scripts}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Application:
    """The ASGI application: the folders, behind HTTP basic authentication if there is a password.

    Args:
        password: `user:password`, or None. `/health` is served without it.
        names: allowed host names, from `names_of_machine`.
    """

    def __init__(self, folders: Folders, password: str | None, names: Collection[str] = ()) -> None:
        self._names = names
        self._files = ExceptionMiddleware(folders)
        self._expected = base64.b64encode(password.encode()) if password else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._files
        headers = Headers(scope=scope)
        if not is_own_host(headers.get("host", ""), self._names):
            answer = PlainTextResponse("not a name of this machine: MUSICGEN_FILES_URL gives it one", 421)
        elif scope["path"] == HEALTH:
            answer = PlainTextResponse(GREETING)
        elif self._expected and not self._is_known(headers.get("authorization", "")):
            challenge = {"www-authenticate": 'Basic realm="musicgen-flows", charset="UTF-8"'}
            answer = PlainTextResponse("a password is needed", 401, challenge)
        await answer(scope, receive, send)

    def _is_known(self, authorization: str) -> bool:
        kind, _, given = authorization.partition(" ")
        return kind.lower() == "basic" and hmac.compare_digest(given.strip().encode(), self._expected or b"")


class Serving:
    """A running file server. `serve` sets its folders.

    Args:
        url, local: addresses for browsers, and for processes of this machine.
    """

    def __init__(self, folders: Folders, url: str, local: str) -> None:
        self._folders, self._url, self._local = folders, url, local

    def serve(self, places: Mapping[str, str]) -> None:
        """Serve the places (by Prefect variable) that are local folders, and publish them on the Prefect server."""
        found = {name: _local_folder(places.get(f"musicgen_{name}", "")) for name in FOLDERS}
        local = {name: folder for name, folder in found.items() if folder is not None}
        if local != self._folders.served:
            FileServer(self._url, self._local, platform.node(), local).publish()
            self._folders.served = local


def _local_folder(location: str) -> str | None:
    """Return the resolved path of a place, or None if it is remote, relative or invalid."""
    with contextlib.suppress(ConfigError, OSError, RuntimeError):  # RuntimeError: circular symbolic link
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
    with listening(Application(folders, password(), names_of_machine(url)), host, port):
        try:
            yield Serving(folders, url, local)
        finally:
            with contextlib.suppress(httpx.HTTPError):  # the Prefect server may have ended already
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
    """Return the Prefect server's `user:password` if it is in this process's settings."""
    settings = get_current_settings()
    found = settings.server.api.auth_string or settings.api.auth_string
    return found.get_secret_value() if found else None

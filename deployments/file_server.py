"""The file server of `up`: tokens, runs and music, read-only, for the browser that shows the Prefect UI.

Starlette's StaticFiles resolves paths and serves ranges of bytes, which players need to seek. Here are the folders and
who is answered: requests by a name of this machine, with the password if there is one. Which files are served:
`tasks/served.py`; how folders are listed: `deployments/listing.py`.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import ipaddress
import os
import platform
import socket
import stat
import threading
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote, urlsplit

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

from deployments.listing import folder_page, is_open, places_page
from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.escaping import csp_hashes
from tasks.served import GREETING, HEALTH, TYPES, VARIABLE, FileServer, is_served

FOLDERS = ("tokens", "runs", "output")
"""Places that are served; archives are not."""
_STOP_SECONDS = 5.0
_TEMPLATES = {"musicgen_core.generation": "index.html.j2", "musicgen_core.evaluation": "report.html.j2"}


class Folders(StaticFiles):
    """The first part of a path names one of the folders, the rest a file or folder in it. Folders are listed."""

    def __init__(self) -> None:
        super().__init__()
        self.served: Mapping[str, str] = {}

    def lookup_path(self, path: str) -> tuple[str, os.stat_result | None]:
        file, folder, found = self._find(path)
        return (file, found) if found and is_served(Path(file), Path(folder)) else ("", None)

    def _find(self, path: str) -> tuple[str, str, os.stat_result | None]:
        """Return the path without symbolic links, that of its folder, and what is there: None for what is outside."""
        name, _, rest = path.partition(os.sep)
        if name not in self.served:
            return "", "", None
        folder = self.served[name]
        try:
            # It gives nothing for a path, or the target of a symbolic link, that is not in the folder.
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
            if (listing := await anyio.to_thread.run_sync(self._listing, path, scope["path"])) is None:
                raise
            return listing

    def _listing(self, path: str, asked: str) -> Response | None:
        """Return the page of a folder, or that of all of them; None: there is no such folder.

        Args:
            path: as `get_path` makes it.
            asked: the path of the URL.
        """
        if path == os.curdir:
            return HTMLResponse(places_page(self.served), headers=_headers())
        try:
            folder, place, found = self._find(path)
            if not (found and stat.S_ISDIR(found.st_mode) and is_open(Path(folder), Path(place))):
                folder = place = self.served.get(path, "")  # a place that is not there yet
            if not place:
                return None
            if not asked.endswith("/"):  # relative, as a proxy may have put something before the path
                return RedirectResponse(f"./{quote(asked.rpartition('/')[2])}/")
            return HTMLResponse(folder_page(Path(folder), Path(place), path), headers=_headers())
        except (OSError, ValueError):  # it can't be read; no name of a file
            return None

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
        "cache-control": "no-cache",  # a page that was written again is shown as it is now
        "content-security-policy": page_policy(),
    }


@cache
def page_policy() -> str:
    """Return the Content-Security-Policy of whatever is served: of scripts those of this project's pages alone.

    Other pages that lie in the folders could read all the files there and send them away.
    """
    sources = [files(package).joinpath(name).read_text("utf-8") for package, name in _TEMPLATES.items()]
    scripts = " ".join(dict.fromkeys(csp_hashes(source, "script") for source in sources))
    return (
        f"default-src 'none'; img-src 'self' data:; media-src 'self' data:; style-src 'unsafe-inline'; "
        f"script-src {scripts}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def is_own_host(host: str, names: Collection[str]) -> bool:
    """Return whether a request's Host is this machine: an IP address, localhost, or one of its names.

    A page of another site can have its own name resolve to this machine (DNS rebinding), and would read the answers.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name in names
    return True


def names_of_machine(url: str) -> set[str]:
    """Return the names, in lower case, by which browsers may call this machine: its own, and that in the URL."""
    node = platform.node().lower()
    return {node, f"{node.partition('.')[0]}.local", urlsplit(url).hostname or node}


class Application:
    """The ASGI application: the folders, behind HTTP's basic authentication if there is a password.

    Args:
        password: `user:password`; None for none. `/health` is served without it.
        names: see `names_of_machine`.
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
    with listening(Application(folders, password(), names_of_machine(url)), host, port):
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

"""Links to files on the file server of `up`, and the rule which files it serves.

`up` stores the file server's address in a Prefect variable, where every run finds it. Without a file server (on a
temporary server or a server for a team) pages show only paths.
"""

from __future__ import annotations

import logging
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
from prefect import runtime
from prefect.variables import Variable

from musicgen_core import storage
from musicgen_core.escaping import markdown_code, markdown_link

if TYPE_CHECKING:
    from upath import UPath

logger = logging.getLogger(__name__)

VARIABLE = "musicgen_files"
HEALTH = "/health"
GREETING = "musicgen-flows: files"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".png": "image/png",
    ".json": "application/json",
    ".pt": "application/octet-stream",
    ".npy": "application/octet-stream",
    ".parquet": "application/octet-stream",
}
"""Content types by file ending; only these files are served"""
_DESCRIBED = (".wav", ".parquet")
_ANSWER_SECONDS = 3.0
CHECK_SECONDS = 60.0
"""How long a run caches whether the file server answers"""


def is_served(file: Path, folder: Path) -> bool:
    """Return whether the file server serves a file: one of `TYPES` in the folder, not hidden, and no settings file.

    Paths must be resolved, so that no symbolic link leads out of the folder. A `.json` is served only if the wav or
    shard that it describes is in the same folder. Others, such as `config.json` or an account's key, are not.
    """
    if file.suffix not in TYPES or not is_open(file, folder):
        return False
    return file.suffix != ".json" or any(file.with_suffix(ending).is_file() for ending in _DESCRIBED)


def is_open(path: Path, place: Path) -> bool:
    """Return whether a path, without symbolic links, is in a place and not hidden. Such folders are listed."""
    return path.is_relative_to(place) and not any(part.startswith(".") for part in path.relative_to(place).parts)


@dataclass(frozen=True)
class FileServer:
    """The file server of `up`, as stored in the Prefect variable.

    Attributes:
        url: its URL for browsers.
        local: its URL for processes on the same machine.
        machine: name of its machine.
        folders: resolved paths of the folders that it serves, by their names in URLs.
    """

    url: str
    local: str
    machine: str
    folders: Mapping[str, str]

    def publish(self) -> None:
        """Store this description in the Prefect variable."""
        Variable.set(VARIABLE, asdict(self), overwrite=True)

    def url_of(self, location: storage.Location | UPath) -> str | None:
        """Return the URL of a file or directory; None if it does not exist or is not served."""
        path = storage.as_path(location)
        if not storage.is_local(path) or not path.exists():
            return None
        found = Path(str(path)).resolve()
        is_shown, end = (is_open, "/") if found.is_dir() else (is_served, "")
        for name, folder in self.folders.items():
            if is_shown(found, Path(folder)):
                return "/".join([self.url, name, *map(quote, found.relative_to(folder).parts)]) + end
        return None


def stored_file_server() -> FileServer | None:
    """Return the file server that the Prefect variable describes, even if it is not running."""
    stored: Any = Variable.get(VARIABLE)
    try:
        return FileServer(**stored) if stored else None
    except TypeError:  # written by another version, or by hand
        return None


def file_link(location: storage.Location | UPath, text: str = "") -> str:
    """Return a path, or a text in its place, as Markdown: a link if the file server of `up` serves the file."""
    url, text = None, text or str(location)
    try:
        if (run := runtime.flow_run.id) and (server := _file_server(run, int(time.monotonic() // CHECK_SECONDS))):
            url = server.url_of(location)
    except Exception as error:  # of whatever type: the page must appear without the link
        logger.debug("%s has no link: %s", location, error)
    return markdown_link(text, url) if url else markdown_code(text)


def links_in(markdown: str) -> list[str]:
    """Return the unique URLs of the links in a page."""
    return list(dict.fromkeys(re.findall(r"\]\((https?://[^)\s]+)\)", markdown)))


@lru_cache(maxsize=8)
def _file_server(flow_run: str, check: int) -> FileServer | None:
    """Return the file server of this machine; None if there is none, or it does not answer.

    The arguments are keys of the cache. `check` grows with time: a server that was too busy to answer is asked again.
    """
    server = stored_file_server()
    if server is None or server.machine != platform.node():
        return None
    try:
        answer = httpx.get(f"{server.local}{HEALTH}", timeout=_ANSWER_SECONDS)
    except httpx.HTTPError:
        return None
    return server if answer.text == GREETING else None

"""Links to files that the file server of `up` serves, and the rule of which files those are.

`up` keeps where its file server is in a Prefect variable, so that every run finds it, wherever it was started. Without
one (a temporary server, a server for a team) pages show paths alone.
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
"""Content types of the files that are served, by ending; no others are."""
_DESCRIBED = (".wav", ".parquet")
_ANSWER_SECONDS = 3.0
CHECK_SECONDS = 60.0
"""How long a run takes the file server to be as it found it"""


def is_served(file: Path, folder: Path) -> bool:
    """Return whether the file server shows a file: one of `TYPES` in the folder, nothing hidden, no settings.

    A `.json` is served if the wav or shard that it describes is beside it. Others, such as `config.json`, WandB's
    metadata or the key of an account, are not.

    Args:
        file, folder: without symbolic links, so that none leads out of the folder.
    """
    if not file.is_relative_to(folder) or file.suffix not in TYPES:
        return False
    if any(part.startswith(".") for part in file.relative_to(folder).parts):
        return False
    return file.suffix != ".json" or any(file.with_suffix(ending).is_file() for ending in _DESCRIBED)


@dataclass(frozen=True)
class FileServer:
    """The file server of `up`, as the Prefect variable describes it.

    Attributes:
        url: where browsers reach it.
        local: where processes of its machine reach it.
        machine: name of that machine.
        folders: the folders that it serves, without symbolic links, by their names in URLs.
    """

    url: str
    local: str
    machine: str
    folders: Mapping[str, str]

    def publish(self) -> None:
        """Store it in the Prefect variable."""
        Variable.set(VARIABLE, asdict(self), overwrite=True)

    def url_of(self, location: storage.Location | UPath) -> str | None:
        """Return the URL of a file; None if there is no such file, or it is not served."""
        path = storage.as_path(location)
        if not storage.is_local(path) or not path.is_file():
            return None
        file = Path(str(path)).resolve()
        for name, folder in self.folders.items():
            if is_served(file, Path(folder)):
                return f"{self.url}/{name}/{quote(file.relative_to(folder).as_posix())}"
        return None


def stored_file_server() -> FileServer | None:
    """Return what the Prefect variable describes, whether or not it runs."""
    stored: Any = Variable.get(VARIABLE)
    try:
        return FileServer(**stored) if stored else None
    except TypeError:  # of another version, or set by hand
        return None


def file_link(location: storage.Location | UPath) -> str:
    """Return a path as Markdown: a link if the file server of `up` serves the file to the current run's readers."""
    url = None
    try:
        if (run := runtime.flow_run.id) and (server := _file_server(run, int(time.monotonic() // CHECK_SECONDS))):
            url = server.url_of(location)
    except Exception as error:  # whatever it is, a link is not worth the page that it is for
        logger.debug("%s has no link: %s", location, error)
    return markdown_link(str(location), url) if url else markdown_code(location)


def links_in(markdown: str) -> list[str]:
    """Return the URLs of the links in a page, each once."""
    return list(dict.fromkeys(re.findall(r"\]\((https?://[^)\s]+)\)", markdown)))


@lru_cache(maxsize=8)
def _file_server(flow_run: str, check: int) -> FileServer | None:
    """Return the file server that serves this machine's files; None if there is none, or it does not answer.

    Args:
        check: a number that grows with time, so that one that was too busy to answer is asked again.
    """
    server = stored_file_server()
    if server is None or server.machine != platform.node():
        return None
    try:
        answer = httpx.get(f"{server.local}{HEALTH}", timeout=_ANSWER_SECONDS)
    except httpx.HTTPError:
        return None
    return server if answer.text == GREETING else None

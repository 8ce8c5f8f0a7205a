"""The file server's pages: those that list folders, newest entries first, and the one for a path to nothing."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from musicgen_core.escaping import html_page, one_line
from musicgen_core.generation.page import PAGE
from musicgen_core.language import message, say, translated
from musicgen_core.run_layout import EVALUATION, EVALUATION_REPORT, SAMPLES
from musicgen_core.wording import counted, sized
from tasks.served import is_open, is_served

MOST_ROWS = 500
"""Maximum number of entries of each kind (subfolders, files) on a page."""
PLACES = {
    "tokens": message("Tokens: your music as the model reads it"),
    "runs": message("Training runs: adapters, samples, loss curves, reports"),
    "output": message("Generated music"),
}
"""Content of each place."""
_PAGES = {
    PAGE: message("Listen to all of it"),
    f"{SAMPLES}/{PAGE}": message("Listen to its samples"),
    EVALUATION_REPORT: message("Read the report"),
    f"{EVALUATION}/{EVALUATION_REPORT}": message("Read the report"),
}
"""Pages that are the reason to open a folder, and their use. Those of a run directory are one level deeper."""


@dataclass(frozen=True)
class Page:
    """A page that is the reason to open a folder, such as a report."""

    text: str
    link: str


@dataclass(frozen=True)
class Entry:
    """A subfolder or file in a listing.

    Attributes:
        link: relative URL.
        changed: time of the last modification.
        size: size of a file.
        pages: pages of a subfolder.
    """

    name: str
    link: str
    changed: datetime
    size: str = ""
    pages: tuple[Page, ...] = ()


def places_page(served: Iterable[str]) -> str:
    """Return the page of all places."""
    places = [Page(translated(PLACES[name]), f"{quote(name)}/") for name in served]
    return html_page("deployments", "places.html.j2", places=places)


def folder_page(directory: Path, place: Path, trail: str) -> str:
    """Return the page of a folder.

    Args:
        directory: resolved path of the folder. One that does not exist yet is empty.
        place: resolved path of the served folder that contains it.
        trail: its path in URLs, such as `runs/first`.

    Raises:
        OSError: the folder can't be read.
    """
    found = list(_found(directory, place)) if directory.exists() else []
    folders = [each for each in found if each.size is None]
    files = [each for each in found if each.size is not None]
    *above, name = trail.split("/")
    return html_page(
        "deployments",
        "folder.html.j2",
        trail=trail,
        name=name,
        above=[Page(each, "../" * (len(above) - number)) for number, each in enumerate(above)],
        root="../" * (len(above) + 1),
        pages=_pages(directory, place),
        folders=[_folder(each, directory, place) for each in _newest(folders)],
        files=[
            Entry(each.name, _link(each.name), _time(each.changed), translated(sized(each.size or 0)))
            for each in _newest(files)
        ],
        more_folders=_more(len(folders), counted(len(folders) - MOST_ROWS, "more folder")),
        more_files=_more(len(files), counted(len(files) - MOST_ROWS, "more file")),
    )


def missing_page(asked: str, trail: str, root: str) -> str:
    """Return the page for a path that leads to nothing.

    Args:
        asked: the path.
        trail: path of the nearest folder above it that is listed; empty if there is none.
        root: relative URL of the page of all places.
    """
    above = [Page(say("Open the folder {folder}", folder=one_line(trail)), f"{root}{quote(trail)}/")] if trail else []
    links = [*above, Page(say("Files of musicgen-flows"), root)]
    return html_page("deployments", "missing.html.j2", asked=one_line(asked), links=links)


class _Found(NamedTuple):
    """An entry that the file server shows. Folders have no size."""

    name: str
    changed: float
    size: int | None


def _found(directory: Path, place: Path) -> Iterator[_Found]:
    with os.scandir(directory) as entries:
        for entry in entries:
            try:
                entry.name.encode()
                target = Path(os.path.realpath(entry.path) if entry.is_symlink() else entry.path)
                is_folder = entry.is_dir()
                is_shown = is_open(target, place) if is_folder else entry.is_file() and is_served(target, place)
                if is_shown and not entry.name.startswith("."):
                    found = entry.stat()
                    yield _Found(entry.name, found.st_mtime, None if is_folder else found.st_size)
            except (OSError, UnicodeEncodeError):  # deleted, a circular link, or a name that no URL can have
                continue


def _newest(found: Iterable[_Found]) -> list[_Found]:
    return heapq.nsmallest(MOST_ROWS, found, key=lambda each: (-each.changed, each.name))


def _folder(found: _Found, directory: Path, place: Path) -> Entry:
    link = f"{_link(found.name)}/"
    pages = tuple(Page(page.text, f"{link}{page.link}") for page in _pages(directory / found.name, place))
    return Entry(found.name, link, _time(found.changed), pages=pages)


def _pages(folder: Path, place: Path) -> list[Page]:
    """Return the pages that a folder has."""
    return [Page(translated(text), name) for name, text in _PAGES.items() if _is_shown(folder / name, place)]


def _is_shown(file: Path, place: Path) -> bool:
    target = Path(os.path.realpath(file))
    return os.access(target, os.R_OK) and target.is_file() and is_served(target, place)


def _link(name: str) -> str:
    return f"./{quote(name)}"


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC).astimezone()


def _more(number: int, rest: str) -> str:
    return say("and {rest}, older than these", rest=rest) if number > MOST_ROWS else ""

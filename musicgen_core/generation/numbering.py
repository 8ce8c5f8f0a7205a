"""Numbers of pieces in a folder that may hold earlier music: a piece replaces itself alone."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError
from musicgen_core.generation.page import PAGE, is_page

Sidecar = Mapping[str, Any]
_NAME = re.compile(r"generated_(\d{3,9})\.\w+", re.ASCII)
_READERS = 8
_DECIDING = (
    *("prompt", "seed", "variation", "continued_from_sha256", "duration", "sampling"),
    *("weight_bits", "cache_bits"),
)


def identity(sidecar: Sidecar) -> str:
    """Return what decides how a piece sounds, the same for the same piece rendered again.

    That is text, seed, variation, what it continues, length, model, adapter and sampling settings. Device, batch size
    and versions are left out, so that a retry on another machine replaces the piece.
    """
    adapter, model = sidecar.get("adapter"), str(sidecar.get("model"))
    weights = adapter.get("sha256") if isinstance(adapter, Mapping) else adapter
    return json.dumps([*(sidecar.get(name) for name in _DECIDING), model.rpartition("@")[2], weights], sort_keys=True)


@dataclass(frozen=True)
class _Folder:
    """The sidecars that earlier runs left in a folder, and every number that a file there has."""

    sidecars: dict[int, Sidecar]
    taken: set[int]

    def may_hold(self, number: int, piece: str) -> bool:
        """Return whether nothing but this piece has the number."""
        known = self.sidecars.get(number)
        return number not in self.taken if known is None else identity(known) == piece


class Numbering:
    """Gives the pieces of a run their numbers. For any thread.

    Args:
        folders: where the pieces go; what the first one holds decides which pieces are there already.

    Raises:
        ConfigError: a folder has an `index.html` that is not a page of this project, or it can't be read.
    """

    def __init__(self, *folders: UPath) -> None:
        self._lock = threading.Lock()
        self._folders = [_read(folder) for folder in folders]
        self._taken = set[int]().union(*(folder.taken for folder in self._folders))
        self._numbers: dict[str, int] = {}
        for number, sidecar in self._folders[0].sidecars.items():
            piece = identity(sidecar)
            if all(folder.may_hold(number, piece) for folder in self._folders):
                self._numbers.setdefault(piece, number)
        self._offset: int | None = None

    def earlier(self, place: int) -> dict[int, Sidecar]:
        """Return the sidecars by number that the folder at this place among `folders` held before."""
        return self._folders[place].sidecars

    def take(self, index: int, sidecar: Sidecar) -> int:
        """Return the number of this run's piece `index`: its own if it was rendered before, else one that is free.

        A rendering that is run again fills the gaps that an interruption left, in the order of its prompts.
        """
        with self._lock:
            number = self._numbers.get(identity(sidecar))
            after = max(self._taken, default=-1) + 1
            if self._offset is None:
                self._offset = after if number is None else number - index
            if number is None:
                number = self._offset + index
                number = number if number >= 0 and number not in self._taken else after
            self._taken.add(number)
            return number


def stem_of(number: int) -> str:
    return f"generated_{number:03d}"


def _read(folder: UPath) -> _Folder:
    try:
        if not storage.is_local(folder):
            folder.fs.invalidate_cache(folder.path)  # another process may have written beside an older listing
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        taken = {int(found[1]) for found in map(_NAME.fullmatch, names) if found}
        if PAGE in names and not _is_ours(folder / PAGE):
            raise ConfigError(
                f"{folder / PAGE} is not a page of generated music", "Give another folder, or move it away"
            )
        with ThreadPoolExecutor(_READERS, "reading sidecars") as readers:
            read = readers.map(lambda number: _sidecar(folder / f"{stem_of(number)}.json"), taken)
            sidecars = {number: sidecar for number, sidecar in zip(taken, read, strict=True) if sidecar is not None}
    except OSError as error:
        raise ConfigError(f"the folder {folder} can't be read ({error})", "Check the path, or give another") from error
    return _Folder(dict(sorted(sidecars.items())), taken)


def _is_ours(page: UPath) -> bool:
    try:
        return is_page(storage.read_text(page))
    except ValueError:
        return False


def _sidecar(path: UPath) -> Sidecar | None:
    """A piece's sidecar; None for what is none, or is another program's."""
    try:
        values = json.loads(storage.read_text(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and {"prompt", "seed", "sampling"} <= values.keys() else None

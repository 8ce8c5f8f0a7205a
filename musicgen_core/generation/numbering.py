"""Numbers of pieces in a folder that may hold earlier music: a piece replaces itself alone."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError, reason_of
from musicgen_core.generated_pages import MUSIC, PAGE
from musicgen_core.language import message

Sidecar = Mapping[str, Any]
_NAME = re.compile(r"generated_(\d{3,9})\.(\w+)", re.ASCII)
_CLAIM = "claim"
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


class Numbering:
    """Gives the pieces of a run their numbers. For any thread, beside other runs into the same folders.

    A number is claimed by the file `generated_003.claim`, which names the piece and is created only where there is
    none. That is atomic on local file systems and on Google Cloud Storage. It stays until the piece is written: after
    a kill, the same rendering finds its numbers by it, and another one leaves them out.

    Args:
        folders: where the pieces go; what the first one holds decides which pieces are there already.

    Raises:
        ConfigError: a folder has an `index.html` that is not a page of this project, or it can't be read.
    """

    def __init__(self, *folders: UPath) -> None:
        self._lock = threading.Lock()
        self._folders = [_Folder(folder) for folder in folders]
        self._taken = set[int]().union(*(folder.taken for folder in self._folders))
        self._numbers: dict[str, int] = {}
        for number, piece in sorted(self._folders[0].pieces.items()):
            if all(folder.may_hold(number, piece) for folder in self._folders):
                self._numbers.setdefault(piece, number)
        self._offset: int | None = None

    def sidecars(self, place: int, besides: Collection[int] = ()) -> dict[int, Sidecar]:
        """Return the sidecars by number that the folder at this place among `folders` holds now.

        Args:
            besides: numbers that needn't be read, as they are this run's.
        """
        folder = self._folders[place]
        folder.refresh(besides)
        return folder.sidecars

    def take(self, index: int, sidecar: Sidecar) -> int:
        """Claim and return the number of this run's piece `index`: its own if it was rendered before, else a free one.

        A rendering that is run again fills the gaps that an interruption left, in the order of its prompts.
        """
        piece = identity(sidecar)
        with self._lock:
            number = self._numbers.get(piece)
            if self._offset is None:
                self._offset = self._after() if number is None else number - index
            if number is None:
                number = self._offset + index
                number = number if number >= 0 and number not in self._taken else self._after()
            while not self._claim(number, piece):
                for folder in self._folders:
                    self._taken |= folder.numbers()
                self._taken.add(number)
                number = self._after()
            self._taken.add(number)
            return number

    def release(self, number: int) -> None:
        """Delete the claim of a piece that is written."""
        for folder in self._folders:
            folder.claim(number).unlink(missing_ok=True)

    def _after(self) -> int:
        return max(self._taken, default=-1) + 1

    def _claim(self, number: int, piece: str) -> bool:
        """Return whether the number is this piece's now, in all folders."""
        created = []
        for folder in self._folders:
            claim = folder.claim(number)
            if storage.create(claim, piece):
                created.append(claim)
            # Without a claim of its own, a run that had the number may have written its piece meanwhile.
            if _claimed_by(claim) != piece or folder.is_of_another(number, piece):
                for mine in created:
                    mine.unlink(missing_ok=True)
                return False
        return True


class _Folder:
    """What a folder holds of music.

    Attributes:
        sidecars: by number.
        pieces: identities by number, of sidecars and of claims.
        taken: every number that a file has.
    """

    def __init__(self, path: UPath) -> None:
        self.path = path
        self.sidecars: dict[int, Sidecar] = {}
        try:
            names = self._names()
            if PAGE in names and not MUSIC.is_at(path / PAGE):
                raise ConfigError(
                    message("{place} is not a page of generated music", place=path / PAGE),
                    message("Give another folder, or move it away"),
                )
            self.taken = _numbers(names)
            claims = {number: _claimed_by(self.claim(number)) for number in _numbers(names, _CLAIM)}
            self._read(_numbers(names, "json"))
        except OSError as error:
            raise ConfigError(
                message("the folder {path} can't be read ({reason})", path=path, reason=reason_of(error)),
                message("Check the path, or give another"),
            ) from error
        self.pieces = {number: piece for number, piece in claims.items() if piece is not None}
        self.pieces |= {number: identity(sidecar) for number, sidecar in self.sidecars.items()}

    def claim(self, number: int) -> UPath:
        return self.path / f"{stem_of(number)}.{_CLAIM}"

    def may_hold(self, number: int, piece: str) -> bool:
        """Return whether nothing but this piece had the number when the folder was read."""
        return self.pieces.get(number) == piece or number not in self.taken

    def is_of_another(self, number: int, piece: str) -> bool:
        """Return whether another piece has the number now."""
        path = self.path / f"{stem_of(number)}.json"
        return (sidecar := _sidecar(path)) is not None and identity(sidecar) != piece

    def numbers(self) -> set[int]:
        """Return every number that a file has now."""
        return _numbers(self._names())

    def refresh(self, besides: Collection[int]) -> None:
        """Read sidecars that came since, but for these numbers."""
        self._read(_numbers(self._names(), "json") - self.sidecars.keys() - set(besides))

    def _names(self) -> set[str]:
        if not storage.is_local(self.path):
            self.path.fs.invalidate_cache(self.path.path)  # another process may have written beside an older listing
        return {path.name for path in self.path.iterdir()} if self.path.exists() else set()

    def _read(self, numbers: Collection[int]) -> None:
        with ThreadPoolExecutor(_READERS, "reading sidecars") as readers:
            read = readers.map(lambda number: _sidecar(self.path / f"{stem_of(number)}.json"), numbers)
            self.sidecars |= {number: found for number, found in zip(numbers, read, strict=True) if found is not None}


def stem_of(number: int) -> str:
    return f"generated_{number:03d}"


def _numbers(names: Iterable[str], ending: str = "") -> set[int]:
    """Return the numbers in names of files; of those with an ending, if one is given."""
    found = (_NAME.fullmatch(name) for name in names)
    return {int(match[1]) for match in found if match is not None and ending in ("", match[2])}


def _claimed_by(claim: UPath) -> str | None:
    """Return the piece that a claim names; None for what is none."""
    try:
        return storage.read_text(claim)
    except (FileNotFoundError, ValueError):
        return None


def _sidecar(path: UPath) -> Sidecar | None:
    """A piece's sidecar; None for what is none, or is another program's."""
    try:
        values = json.loads(storage.read_text(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and {"prompt", "seed", "sampling"} <= values.keys() else None

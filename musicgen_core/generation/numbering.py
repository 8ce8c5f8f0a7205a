"""Number samples in a folder that may hold earlier music: a sample replaces only an earlier rendering of itself."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError, reason_of
from musicgen_core.generation.page import MUSIC, PAGE, file_names
from musicgen_core.generation.sidecars import Sidecar, adapter_entries, candidate_of, strength_of
from musicgen_core.language import message

_NAME = re.compile(r"generated_(\d{3,9})\.(\w+)", re.ASCII)
_CLAIM = "claim"
_READERS = 8
_IDENTIFYING = (
    *("prompt", "seed", "variation", "continued_from_sha256", "duration", "sampling"),
    *("melody_sha256", "melody_separator", "weight_bits", "cache_bits", "negative_prompt", "sections"),
)


def identity(sidecar: Sidecar) -> str:
    """Return the values that determine how a sample sounds: equal for the same sample rendered again.

    They are texts, seed, variation, candidate, the continued file, the melody, length, model, adapters with strengths
    and sampling settings. Device, batch size and versions are not included, so that a retry on another machine replaces
    the sample.
    """
    model = str(sidecar.get("model")).rpartition("@")[2]
    values = [*(sidecar.get(name) for name in _IDENTIFYING), model, _weights(sidecar), candidate_of(sidecar)]
    if seam := _seam(sidecar):
        values.append(seam)
    return json.dumps(values, sort_keys=True)


def _weights(sidecar: Sidecar) -> Any:
    """Return what identifies the adapters; their order has no effect, and one of strength 1 needs no strength."""
    adapters = adapter_entries(sidecar)
    found = sorted(([one.get("sha256"), strength_of(one)] for one in adapters), key=str)
    if len(found) == 1 and found[0][1] == 1:
        return found[0][0]
    return found or sidecar.get("adapter")


def _seam(sidecar: Sidecar) -> Any:
    """Return what identifies a loop or a stretch made again; scores differ by rounding."""
    found = {name: sidecar[name] for name in ("loop", "redo") if isinstance(sidecar.get(name), dict)}
    names = ("begin", "end", "candidates", "measured")
    return {kind: [described.get(name) for name in names] for kind, described in found.items()}


class Numbering:
    """Assigns numbers to the samples of a run. Thread-safe, also with other runs that write to the same folders.

    A number is claimed by creating the file `generated_003.claim`, which identifies the sample, if it doesn't exist:
    an atomic operation on local file systems and on Google Cloud Storage. It is deleted once the sample is written. If
    a run is killed, the same rendering finds its numbers by these files, and others skip them.

    Args:
        folders: the output folders; the first one decides which samples exist already.

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
        """Return the sidecars that a folder holds now, by number.

        Args:
            place: the folder's index in `folders`.
            besides: numbers that need not be read, because they are this run's.
        """
        folder = self._folders[place]
        folder.refresh(besides)
        return folder.sidecars

    def take(self, index: int, sidecar: Sidecar) -> int:
        """Claim and return the number of this run's sample `index`: its earlier number if it has one, else a free one.

        A repeated rendering fills the gaps that an interruption left, in the order of its prompts.
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
        """Delete the claim of a sample that is written."""
        for folder in self._folders:
            folder.claim(number).unlink(missing_ok=True)

    def _after(self) -> int:
        return max(self._taken, default=-1) + 1

    def _claim(self, number: int, piece: str) -> bool:
        """Claim a number in all folders, and return whether it is this sample's now."""
        created = []
        for folder in self._folders:
            claim = folder.claim(number)
            if storage.create(claim, piece):
                created.append(claim)
            # A run that had the number may have written its sample and deleted its claim in between.
            if _claimed_by(claim) != piece or folder.is_of_another(number, piece):
                for own in created:
                    own.unlink(missing_ok=True)
                return False
        return True


class _Folder:
    """The generated music in a folder.

    Attributes:
        sidecars: sidecars by number.
        pieces: identities by number, of sidecars and of claims.
        taken: all numbers of files.
    """

    def __init__(self, path: UPath) -> None:
        self.path = path
        self.sidecars: dict[int, Sidecar] = {}
        self._versions: dict[int, str] = {}
        try:
            names = file_names(self.path)
            if PAGE in names and not MUSIC.is_at(path / PAGE):
                raise ConfigError(
                    message("{place} is not a page of generated music", place=path / PAGE),
                    message("Give another folder, or move it away"),
                )
            self.taken = _numbers(names)
            claims = {number: _claimed_by(self.claim(number)) for number in _numbers(names, _CLAIM)}
            self._update(_numbers(names, "json"), ())
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
        """Return whether the number was free or this sample's when the folder was read."""
        return self.pieces.get(number) == piece or number not in self.taken

    def is_of_another(self, number: int, piece: str) -> bool:
        """Return whether another sample has the number now."""
        return (sidecar := _sidecar(self._sidecar_path(number))) is not None and identity(sidecar) != piece

    def numbers(self) -> set[int]:
        """Return all numbers that files have now."""
        return _numbers(file_names(self.path))

    def refresh(self, besides: Collection[int]) -> None:
        """Read new sidecars, and in a local folder changed ones, except those of these numbers; forget deleted ones."""
        self._update(_numbers(file_names(self.path), "json"), besides)

    def _update(self, numbers: set[int], besides: Collection[int]) -> None:
        versions = {number: self._version(number) for number in numbers.difference(besides)}
        changed = {
            number
            for number, version in versions.items()
            if number not in self.sidecars or self._versions.get(number) != version
        }
        same = {number: self.sidecars[number] for number in self.sidecars.keys() & (numbers - changed)}
        # A new dictionary: other threads may be reading the one that `Numbering.sidecars` returned earlier.
        self.sidecars, self._versions = same | self._read(changed), versions

    def _version(self, number: int) -> str:
        """Return what changes with a sidecar; the same for all of a remote folder, where each would be a request."""
        path = self._sidecar_path(number)
        try:
            return storage.version_of(path) if storage.is_local(path) else ""
        except FileNotFoundError:  # deleted since the folder was listed
            return ""

    def _read(self, numbers: Collection[int]) -> dict[int, Sidecar]:
        with ThreadPoolExecutor(_READERS, "reading sidecars") as readers:
            read = readers.map(lambda number: _sidecar(self._sidecar_path(number)), numbers)
            return {number: found for number, found in zip(numbers, read, strict=True) if found is not None}

    def _sidecar_path(self, number: int) -> UPath:
        return self.path / f"{stem_of(number)}.json"


def stem_of(number: int) -> str:
    return f"generated_{number:03d}"


def _numbers(names: Iterable[str], ending: str = "") -> set[int]:
    """Return the numbers in file names, if `ending` is given only of files with it."""
    found = (_NAME.fullmatch(name) for name in names)
    return {int(match[1]) for match in found if match is not None and ending in ("", match[2])}


def _claimed_by(claim: UPath) -> str | None:
    """Return the identity that a claim holds, or None if it is missing or damaged."""
    try:
        return storage.read_text(claim)
    except (FileNotFoundError, ValueError):
        return None


def _sidecar(path: UPath) -> Sidecar | None:
    """Return a sample's sidecar; None if it is missing, damaged, or another program's file."""
    try:
        values = json.loads(storage.read_text(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and {"prompt", "seed", "sampling"} <= values.keys() else None

"""How many clips archives hold, and a few of them to try, without reading or staging the archives whole."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from typing import BinaryIO, cast

from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import read_archive
from musicgen_core.data.members import Archive, Member
from musicgen_core.errors import ArchiveError, ClipRejected
from musicgen_core.language import message

SAMPLED_ARCHIVES = 4
_AT_ONCE = 16
"""Archives to look into at once: a remote one costs a few round trips and no work."""


@dataclass(frozen=True)
class Listed:
    """An archive that can be opened.

    Attributes:
        archive: where it is.
        archive_bytes: its size.
        clips: of a zip; of a tar, which has no directory, None.
    """

    archive: UPath
    archive_bytes: int
    clips: int | None


@dataclass(frozen=True)
class ArchiveSample:
    """Clips of one archive.

    Attributes:
        listed: the archive.
        path: a local file to open them from: the archive, or a copy that holds what they need of it.
        places: which they are, counted from 0 in the archive's order.
        covered_bytes: of a tar, its beginning up to the last of them; 0 of a zip.
        is_whole: whether these are all clips of a tar.
    """

    listed: Listed
    path: Path
    places: Sequence[int]
    covered_bytes: int = 0
    is_whole: bool = False

    def members(self, opened: Archive) -> Iterator[Member]:
        return _picked(opened, self.places)


def list_archives(archives: Sequence[UPath]) -> tuple[list[Listed], list[str]]:
    """Sizes and clips by the archives' directories, and why others can't be read.

    Raises:
        ArchiveError: none can be read.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(_look, archives))
    listed = [entry for entry in found if isinstance(entry, Listed)]
    unreadable = [entry for entry in found if isinstance(entry, str)]
    if not listed:
        others = f", nor can the other {len(unreadable) - 1}" if len(unreadable) > 1 else ""
        raise ArchiveError(
            message("{unreadable}{others}", unreadable=unreadable[0], others=others),
            message("Check the archives, or copy them again"),
        )
    return listed, unreadable


def take_samples(listed: Sequence[Listed], clips: int, folder: Path, workers: int) -> list[ArchiveSample]:
    """About `clips` clips of at most 4 archives, both spread evenly from the first to the last; of a tar its first.

    Args:
        listed: the archives.
        clips: how many; fewer where there aren't as many in those archives.
        folder: where to put what is needed of remote archives.
        workers: archives to read at once.

    Raises:
        ArchiveError: an archive is damaged, or they hold no clips.
    """
    shares = _share(listed, clips)
    with ThreadPoolExecutor(workers) as pool:
        samples = list(pool.map(lambda entry: _take(entry, shares[entry], folder), shares))
    if not any(sample.places for sample in samples):
        raise ArchiveError(message("the archives hold no clips"), message("Clips are files whose names end in .wav"))
    return samples


def total_clips(listed: Sequence[Listed], samples: Sequence[ArchiveSample]) -> tuple[int, bool]:
    """Clips in all archives, and whether that is exact: those of tars are estimated from their sizes."""
    known = {entry: entry.clips for entry in listed if entry.clips is not None}
    known |= {sample.listed: len(sample.places) for sample in samples if sample.is_whole}
    unknown_bytes = sum(entry.archive_bytes for entry in listed if entry not in known)
    if not unknown_bytes:
        return sum(known.values()), True
    tars = [sample for sample in samples if sample.listed.clips is None]
    if tars:
        per_byte = sum(len(sample.places) for sample in tars) / sum(sample.covered_bytes for sample in tars)
    else:
        per_byte = sum(known.values()) / sum(entry.archive_bytes for entry in known)
    return sum(known.values()) + round(per_byte * unknown_bytes), False


def evenly(count: int, wanted: int) -> list[int]:
    """Places among `count`, from the first to the last; all of them if there aren't more than `wanted`."""
    wanted = min(wanted, count)
    return [number * (count - 1) // max(1, wanted - 1) for number in range(wanted)]


def _share(listed: Sequence[Listed], clips: int) -> dict[Listed, int]:
    """The archives to sample and how many clips to take of each. What a small one lacks falls to the others."""
    filled = [entry for entry in listed if entry.clips != 0]
    chosen = [filled[place] for place in evenly(len(filled), min(SAMPLED_ARCHIVES, clips))]
    shares: dict[Listed, int] = {}
    for entry in sorted(chosen, key=_known_clips):
        fair = (clips - sum(shares.values())) // (len(chosen) - len(shares))
        shares[entry] = int(min(fair, _known_clips(entry)))
    return {entry: shares[entry] for entry in chosen}


def _known_clips(entry: Listed) -> float:
    return math.inf if entry.clips is None else entry.clips


def _look(archive: UPath) -> Listed | str:
    try:
        with archive.open("rb") as file:
            return Listed(archive, archive.stat().st_size, read_archive(file, archive.name).clip_count)
    except ArchiveError as error:
        return error.found
    except OSError as error:
        return f"{archive.name} can't be opened ({error.strerror or error or type(error).__name__})"


def _picked(opened: Archive, places: Sequence[int]) -> Iterator[Member]:
    """The clips at these places. A tar isn't read beyond the last of them."""
    chosen = set(places)
    end = max(places, default=-1) + 1
    return compress(islice(opened.clips(), end), (place in chosen for place in range(end)))


def _take(listed: Listed, wanted: int, folder: Path) -> ArchiveSample:
    archive = listed.archive
    if storage.is_local(archive) and listed.clips is not None:
        return ArchiveSample(listed, Path(str(archive)), evenly(listed.clips, wanted))
    with ExitStack() as stack:
        file = stack.enter_context(archive.open("rb"))
        path = Path(str(archive))
        if not storage.is_local(archive):
            path = folder / archive.name
            file = cast(BinaryIO, CopyingReader(file, stack.enter_context(open(path, "wb"))))
        opened = read_archive(file, archive.name)
        places = evenly(listed.clips, wanted) if listed.clips is not None else range(wanted)
        found = 0
        for member in _picked(opened, places):
            with suppress(ClipRejected), member.open():  # of a zip nothing is read before
                pass
            found += 1
        if listed.clips is not None:
            return ArchiveSample(listed, path, places)
        return ArchiveSample(listed, path, places[:found], file.tell(), is_whole=found < wanted)


class CopyingReader(io.BufferedIOBase):
    """Reads a file and keeps what is read at the same place of a copy, which takes no room for the rest."""

    def __init__(self, source: BinaryIO, copy: BinaryIO) -> None:
        self._source = source
        self._copy = copy
        copy.truncate(source.seek(0, os.SEEK_END))
        source.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        self._copy.seek(self._source.tell())
        data = self._source.read(-1 if size is None else size)
        self._copy.write(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

"""Count the clips of archives and take a sample of them, without reading or staging whole archives."""

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
from musicgen_core.data.members import CLIP_SUFFIXES, Archive, Member
from musicgen_core.errors import ArchiveError, ClipRejected
from musicgen_core.language import message

SAMPLED_ARCHIVES = 4
_AT_ONCE = 16
"""Archives to open in parallel: a remote one costs a few round trips and no computation"""


@dataclass(frozen=True)
class Listed:
    """An archive that can be opened, with its size.

    Attributes:
        archive: path of the archive.
        archive_bytes: size of the archive.
        clips: number of clips in a zip; None for a tar, which has no directory.
    """

    archive: UPath
    archive_bytes: int
    clips: int | None


@dataclass(frozen=True)
class ArchiveSample:
    """Sampled clips of one archive.

    Attributes:
        listed: the archive.
        path: local file to open them from: the archive, or a sparse copy with the bytes that they need.
        places: positions of the clips in the archive, from 0.
        covered_bytes: bytes of a tar up to the end of the last sampled clip; 0 for a zip.
        is_whole: whether the sample holds all clips of a tar.
    """

    listed: Listed
    path: Path
    places: Sequence[int]
    covered_bytes: int = 0
    is_whole: bool = False

    def members(self, opened: Archive) -> Iterator[Member]:
        return _picked(opened, self.places)


def list_archives(archives: Sequence[UPath]) -> tuple[list[Listed], list[str]]:
    """Return size and clip count of each readable archive, and why others can't be read and how to repair them.

    Raises:
        ArchiveError: no archive can be read.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(_look, archives))
    listed = [entry for entry in found if isinstance(entry, Listed)]
    unreadable = [entry for entry in found if isinstance(entry, ArchiveError)]
    if not listed:
        first, more = unreadable[0], len(unreadable) - 1
        others = message(", nor can the other {number:,}", number=more) if more else ""
        raise ArchiveError(message("{unreadable}{others}", unreadable=first.found, others=others), first.next_step)
    return listed, [str(error) for error in unreadable]


def take_samples(listed: Sequence[Listed], clips: int, folder: Path, workers: int) -> list[ArchiveSample]:
    """Sample about `clips` clips from at most 4 archives, evenly spaced; from a tar the first ones.

    Args:
        listed: the archives.
        clips: size of the sample; smaller if those archives hold fewer clips.
        folder: directory for sparse copies of remote archives.
        workers: archives to read in parallel.

    Raises:
        ArchiveError: an archive is damaged, or the archives hold no clips.
    """
    shares = _share(listed, clips)
    with ThreadPoolExecutor(workers) as pool:
        samples = list(pool.map(lambda entry: _take(entry, shares[entry], folder), shares))
    if not any(sample.places for sample in samples):
        raise ArchiveError(
            message("the archives hold no clips"),
            message("Clips are files whose names end in {suffixes}", suffixes=", ".join(CLIP_SUFFIXES)),
        )
    return samples


def total_clips(listed: Sequence[Listed], samples: Sequence[ArchiveSample]) -> tuple[int, bool]:
    """Return the number of clips in all archives, and whether it is exact; tars are estimated from their sizes."""
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
    """Return up to `wanted` evenly spaced indices below `count`, including the first and the last."""
    wanted = min(wanted, count)
    return [number * (count - 1) // max(1, wanted - 1) for number in range(wanted)]


def _share(listed: Sequence[Listed], clips: int) -> dict[Listed, int]:
    """Return the archives to sample and the number of clips of each. Small ones leave their share to the others."""
    filled = [entry for entry in listed if entry.clips != 0]
    chosen = [filled[place] for place in evenly(len(filled), min(SAMPLED_ARCHIVES, clips))]
    shares: dict[Listed, int] = {}
    for entry in sorted(chosen, key=_known_clips):
        fair = (clips - sum(shares.values())) // (len(chosen) - len(shares))
        shares[entry] = int(min(fair, _known_clips(entry)))
    return {entry: shares[entry] for entry in chosen}


def _known_clips(entry: Listed) -> float:
    return math.inf if entry.clips is None else entry.clips


def _look(archive: UPath) -> Listed | ArchiveError:
    try:
        with archive.open("rb") as file:
            return Listed(archive, archive.stat().st_size, read_archive(file, str(archive)).clip_count)
    except ArchiveError as error:
        return error
    except OSError as error:
        reason = str(error.strerror or error or type(error).__name__)
        return ArchiveError(
            message("{archive} can't be opened ({reason})", archive=archive, reason=reason),
            message("Check the path and its permissions"),
        )


def _picked(opened: Archive, places: Sequence[int]) -> Iterator[Member]:
    """Yield the clips at these positions. A tar isn't read beyond the last of them."""
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
            with suppress(ClipRejected), member.open():  # a zip's content is read only now
                pass
            found += 1
        if listed.clips is not None:
            return ArchiveSample(listed, path, places)
        return ArchiveSample(listed, path, places[:found], file.tell(), is_whole=found < wanted)


class CopyingReader(io.BufferedIOBase):
    """Reader that writes all bytes read to the same offset of a sparse copy."""

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

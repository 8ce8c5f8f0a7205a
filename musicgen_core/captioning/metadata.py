"""Merge measurements into `metadata.jsonl`: one line per clip, in the order of archives and clips.

A line with a description and measurements is kept as it is, byte for byte. What a person wrote or corrected is never
replaced, unless all captions are to be regenerated; measured fields are added where they are missing, and a missing
description is composed from the fields as they are then. Lines that belong to no clip of these archives, such as those
of an archive that failed, follow at the end in their order.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import archive_stem
from musicgen_core.data.caption_fields import (
    CAPTIONED_BY,
    CONFIDENCE,
    MEASURED,
    TAGS,
    MetadataEntry,
    own_description,
    texts_of,
)
from musicgen_core.data.captions import keys, named_archive, parse_line, read_lines
from musicgen_core.data.field_types import WrongValues
from musicgen_core.data.sentences import compose
from musicgen_core.data.shards import Rejected
from musicgen_core.errors import MetadataError, reason_of
from musicgen_core.language import message
from musicgen_core.music_tags import VOCABULARY

_ARCHIVE, _PATH, _DESCRIPTION = "archive", "path", "description"


@dataclass(frozen=True)
class MeasuredClip:
    """A clip with its measured fields, and the description beside it in the archive, if any.

    Without fields it was not measured, and what the metadata have of it is kept.
    """

    path: str
    fields: MetadataEntry
    description: str | None = None


@dataclass(frozen=True)
class MeasuredArchive:
    """The clips of an archive in order, and those that were rejected."""

    archive: str
    measured: Sequence[MeasuredClip]
    rejected: Sequence[Rejected]

    @property
    def clips(self) -> int:
        """Return the number of clips that were measured."""
        return len(self.measured)


@dataclass
class Merged:
    """The lines of the new metadata file, and how many descriptions are new, replace others, were kept, are missing.

    Attributes:
        clips: archive and path of the clip of each line; the lines after these belong to no clip.
    """

    lines: list[bytes] = field(default_factory=list)
    clips: list[tuple[str, str]] = field(default_factory=list)
    new: int = 0
    replaced: int = 0
    kept: int = 0
    missing: int = 0


class ExistingMetadata:
    """The lines of a metadata file, which may not exist yet.

    Attributes:
        broken: numbers, from 1, of lines that are no JSON object with a path.
        wrong: values of the others that can't be used.

    Raises:
        MetadataError: the file can't be read.
    """

    def __init__(self, path: UPath) -> None:
        self._lines: list[bytes] = []  # parsed again where they are used: 139,000 entries take 400 MB
        self.broken: list[int] = []
        self.wrong = WrongValues()
        self._by_archive: dict[tuple[str, str], int] = {}
        self._by_path: dict[str, int] = {}
        self._by_name: dict[str, int | None] = {}
        self._by_stem: dict[str, int | None] = {}
        for number, (line, text, entry) in enumerate(read_lines(path) if path.exists() else ()):
            self._lines.append(text)
            if entry is None:
                self.broken.append(line)
                continue
            self.wrong.add(line, entry)
            path_, name, stem = keys(entry[_PATH])
            if archive := named_archive(entry):
                self._by_archive.setdefault((archive, path_), number)
            elif path_ not in self._by_path:
                self._by_path[path_] = number
                for table, key in ((self._by_name, name), (self._by_stem, stem)):
                    known = table.setdefault(key, number)
                    if known is not None and not self._say_the_same(known, number):
                        table[key] = None

    def _say_the_same(self, one: int, other: int) -> bool:
        return own_description(self[one][1]) == own_description(self[other][1])

    def find(self, archive: str, member: str) -> int | None:
        """Return the number of a clip's line, or None, by archive and path, by path, by file name or by stem.

        As in `Captions`, a name or stem of several lines counts if their descriptions are the same.

        Args:
            archive: the archive's stem.
        """
        path, name, stem = keys(member)
        if (number := self._by_archive.get((archive, path))) is not None:
            return number
        for table, key in ((self._by_path, path), (self._by_name, name), (self._by_stem, stem)):
            if key in table:
                return table[key]  # None for an ambiguous name
        return None

    def is_complete(self, archive: MeasuredArchive, needs_measurements: bool = True) -> bool:
        """Return whether all clips of an archive have a description, here or beside them, and measurements here."""
        stem = archive_stem(UPath(archive.archive))
        for clip in archive.measured:
            number = self.find(stem, clip.path)
            entry = {} if number is None else self[number][1]
            if own_description(entry) is None and (needs_measurements or clip.description is None):
                return False
            if needs_measurements and CONFIDENCE not in entry:
                return False
        return True

    def __getitem__(self, number: int) -> tuple[bytes, MetadataEntry]:
        text = self._lines[number]
        return text, parse_line(text) or {}

    def without(self, used: set[int]) -> Iterator[bytes]:
        """Yield the lines that belong to no clip, in order."""
        return (text for number, text in enumerate(self._lines) if number not in used)


def merge(existing: ExistingMetadata, archives: Iterable[MeasuredArchive], made_by: str, overwrite: bool) -> Merged:
    """Return the lines of the metadata file after captioning.

    Args:
        existing: the file as it is.
        archives: measurements, in the order of the archives.
        made_by: what composes the descriptions, with versions, for `captioned_by`.
        overwrite: whether to replace descriptions and measurements that are there already.
    """
    merged = Merged()
    used: set[int] = set()
    for archive in archives:
        stem = archive_stem(UPath(archive.archive))
        for clip in archive.measured:
            number = existing.find(stem, clip.path)
            text, entry = (b"", {}) if number is None else existing[number]
            is_own = number not in used  # other clips that match the same line get lines of their own
            if number is not None:
                used.add(number)
            had = own_description(entry) or clip.description
            if not clip.fields or (text and had and CONFIDENCE in entry and is_own and not overwrite):
                if text and is_own:
                    merged.lines.append(text)
                    merged.clips.append((archive.archive, clip.path))
                merged.kept += 1
                continue
            new = _updated(archive.archive, clip, entry, made_by, overwrite)
            merged.lines.append(json.dumps(new, ensure_ascii=False).encode("utf-8", "replace"))
            merged.clips.append((archive.archive, clip.path))
            if _DESCRIPTION not in new:
                merged.missing += 1
            elif had is None:
                merged.new += 1
            elif overwrite and CAPTIONED_BY in new:
                merged.replaced += 1
            else:
                merged.kept += 1
    merged.lines += existing.without(used)
    return merged


def _updated(
    archive: str, clip: MeasuredClip, entry: Mapping[str, object], made_by: str, overwrite: bool
) -> MetadataEntry:
    """Return a clip's entry with the fields that it lacked, or with new ones."""
    had = own_description(entry) or clip.description
    is_others = _ARCHIVE in entry and named_archive(dict(entry)) is None  # a field of that name with another meaning
    own = {**({} if is_others else {_ARCHIVE: archive}), _PATH: clip.path}
    replaced = {*MEASURED, CAPTIONED_BY, *_taggers_categories(entry)} if overwrite else set()
    kept = {name: value for name, value in entry.items() if name not in replaced}
    measured = {name: value for name, value in clip.fields.items() if not (name in VOCABULARY and TAGS in kept)}
    new: MetadataEntry = {**own, _DESCRIPTION: had, **measured} | kept | own
    if (overwrite or had is None) and (composed := compose(new, f"{archive}/{clip.path}")):
        new |= {_DESCRIPTION: composed, CAPTIONED_BY: made_by}
    elif had is None:
        del new[_DESCRIPTION]
    else:
        new[_DESCRIPTION] = had
    return new


def _taggers_categories(entry: Mapping[str, object]) -> set[str]:
    """Return those of `genre`, `instruments`, `mood` and `vocals` that a tagger wrote: with none but its own tags."""
    confidence = entry.get(CONFIDENCE)
    tags = confidence.get(TAGS) if isinstance(confidence, Mapping) else None
    known = set(tags) if isinstance(tags, Mapping) else set()
    return {name for name in VOCABULARY if name in entry and known.issuperset(texts_of(entry[name]))}


def check_writable(metadata: UPath) -> None:
    """Check that the metadata file can be written, before hours of measuring.

    Raises:
        MetadataError: its folder can't be written, or it is a folder.
    """
    probe = metadata.parent / f".{metadata.name}.{secrets.token_hex(4)}"
    try:
        if metadata.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(metadata))
        storage.write_text(probe, "")
        probe.unlink()
    except OSError as error:
        raise MetadataError(
            message("the descriptions can't be written to {path} ({reason})", path=metadata, reason=reason_of(error)),
            message("Give another file for them, such as one beside the tokens"),
        ) from error


def write(path: UPath, lines: Sequence[bytes]) -> None:
    """Write the metadata file atomically."""
    with storage.publish(path) as local:
        local.write_bytes(b"".join(line + b"\n" for line in lines))

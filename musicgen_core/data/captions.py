"""Descriptions of clips: from the settings, `metadata.jsonl`, or a file beside the clip."""

from __future__ import annotations

import codecs
import io
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.descriptions import (
    MetadataEntry,
    clean,
    describe_sidecar,
    field_text,
    fill_template,
    own_description,
    parse_entry,
    problem_of,
)
from musicgen_core.errors import MetadataError, reason_of
from musicgen_core.language import message
from musicgen_core.texts import MAX_CHARACTERS, decode_text, marked_encoding, shorten, template_fields

if TYPE_CHECKING:
    from musicgen_core.data.archive import Sidecar

_DEFAULTS = TokenizeSettings()


@dataclass(frozen=True)
class Captions:
    """Descriptions, looked up by member path, then by file name, then by stem.

    Attributes:
        source: the metadata file.
        by_path: description or None of each entry, by path, in the file's order.
        by_name: the same by file name, without names that have different descriptions.
        by_stem: the same by stem, without stems that have different descriptions.
        broken_lines: line numbers, from 1, of unusable lines.
        duplicate_lines: line numbers of entries ignored because an earlier one has the same path.
        incomplete_lines: line numbers of entries that lack fields of the template.
    """

    source: str
    by_path: dict[str, str | None]
    by_name: dict[str, str | None]
    by_stem: dict[str, str | None]
    broken_lines: tuple[int, ...] = ()
    duplicate_lines: tuple[int, ...] = ()
    incomplete_lines: tuple[int, ...] = ()

    @property
    def entries(self) -> int:
        """Return the number of entries used."""
        return len(self.by_path)

    def find(self, member: str) -> tuple[bool, str | None]:
        """Return (whether the metadata have an entry for a member, its description)."""
        match = self.match(member)
        return (False, None) if match is None else (True, self.tables[match[0]][match[1]])

    def match(self, member: str) -> tuple[int, str] | None:
        """Return the entry that matches a member as (index into `tables`, key), or None."""
        for index, (table, key) in enumerate(zip(self.tables, keys(member), strict=True)):
            if key in table:
                return index, key
        return None

    @property
    def tables(self) -> tuple[dict[str, str | None], ...]:
        """Return the lookup tables by descending precedence, in the order of `keys`."""
        return self.by_path, self.by_name, self.by_stem


_SUFFIX = re.compile(
    r"\.(wave?|w64|rf64|flac|mp[234]|ogg|oga|opus|aif|aiff|aifc|m4a|aac|wma|au|snd|caf|ape|wv|ac3|mka|mkv|mov|avi|webm"
    r"|midi?|json|txt)$",
    re.IGNORECASE,
)
"""Suffixes removed from a name to get its stem. In `mix.v2` and `01. Intro` the dot belongs to the stem."""


def keys(path: str) -> tuple[str, str, str]:
    """Return the lookup keys of a path: path, file name and stem, normalised in accents and separators."""
    path = unicodedata.normalize("NFC", path.replace("\\", "/"))
    while path.startswith("./"):
        path = path[2:]
    name = posixpath.basename(path)
    return path, name, _SUFFIX.sub("", name) or name


@dataclass(frozen=True)
class Captioner:
    """Composes descriptions from the settings or, if these have no caption, from `metadata` and sidecar files.

    `metadata` must have been loaded with the same settings.
    """

    settings: TokenizeSettings = _DEFAULTS
    metadata: Captions | None = None

    @property
    def uses_sidecars(self) -> bool:
        """Return whether sidecar files can affect descriptions."""
        return self.settings.caption is None

    def describe(self, member: str, *sidecars: Sidecar) -> str | None:
        """Return the description of a clip, with prefix and shortened for T5, or None."""
        text = self._with_prefix(member, sidecars)
        return text and clean(shorten(text))

    def remark(self, member: str, *sidecars: Sidecar) -> str | None:
        """Return a remark on a clip's description: it was shortened, or a sidecar file is unusable; else None."""
        text = self._with_prefix(member, sidecars)
        if text and len(text) > MAX_CHARACTERS:
            return f"its description of {len(text):,} characters was cut to {len(shorten(text)):,}"
        if self.uses_sidecars and self._described(member, sidecars) is None:
            problems = ((sidecar.suffix, sidecar.problem or problem_of(sidecar)) for sidecar in sidecars)
            return next((f"the {suffix} beside it {problem}" for suffix, problem in problems if problem), None)
        return None

    def _with_prefix(self, member: str, sidecars: Sequence[Sidecar]) -> str | None:
        return clean(", ".join(filter(None, (self.settings.caption_prefix, self._described(member, sidecars)))))

    def _described(self, member: str, sidecars: Sequence[Sidecar]) -> str | None:
        if self.settings.caption:
            return self.settings.caption
        found = self.metadata.find(member)[1] if self.metadata else None
        if found is not None:
            return found
        described = (describe_sidecar(sidecar, self.settings.caption_template) for sidecar in sidecars)
        return next((text for text in described if text is not None), None)


def metadata_beside(archive: UPath) -> UPath | None:
    """Return the metadata.jsonl in an archive's directory, or None."""
    beside = archive.parent / "metadata.jsonl"
    return beside if beside.exists() else None


def load_captions(path: UPath, settings: TokenizeSettings = _DEFAULTS) -> Captions:
    """Read `metadata.jsonl`: one JSON object per line, with `path` and `description` or the template's fields.

    A file name or stem shared by clips with different descriptions matches none of them.

    Raises:
        MetadataError: the file is missing, none of its lines can be used, or none has all fields of the template.
    """
    template = settings.caption_template
    by_path: dict[str, str | None] = {}
    broken, duplicate, incomplete = [], [], []
    fields: dict[str, None] = {}  # in order, of entries that lack some of the template's
    for number, entry in _read_entries(path):
        if entry is None:
            broken.append(number)
            continue
        key = keys(entry["path"])[0]
        if key in by_path:
            duplicate.append(number)
            continue
        filled = fill_template(template, entry)
        by_path[key] = filled or own_description(entry)
        if template and filled is None:
            incomplete.append(number)
            fields.update((name, None) for name, value in entry.items() if field_text(value) is not None)
    if not by_path:
        raise MetadataError(
            message(
                "none of the lines of {path} is a JSON object with a path{lines}",
                path=path,
                lines=message(" (lines {numbers})", numbers=listed(broken)) if broken else "",
            ),
            message('Write one object a line, in UTF-8: {"path": "audio/track1.wav", "description": "…"}'),
        )
    if template and len(incomplete) == len(by_path):
        raise _no_line_fits(path, template_fields(template), list(fields))
    return Captions(
        source=str(path),
        by_path=by_path,
        by_name=_unambiguous(by_path, lambda key: keys(key)[1]),
        by_stem=_unambiguous(by_path, lambda key: keys(key)[2]),
        broken_lines=tuple(broken),
        duplicate_lines=tuple(duplicate),
        incomplete_lines=tuple(incomplete),
    )


def _read_entries(path: UPath) -> Iterator[tuple[int, MetadataEntry | None]]:
    """Yield (line number from 1, entry) of each non-blank line; the entry is None if it is unusable."""
    try:
        # Staged, as fsspec reads a whole block again for each line. In bytes, so that a bad line affects no other.
        with storage.staged(path) as local, local.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                line = line.removeprefix(codecs.BOM_UTF8)  # on any line: files with one may have been joined
                if line.strip():
                    yield number, _parse_line(line)
    except OSError as error:
        raise MetadataError(
            message("the metadata file {path} can't be read ({reason})", path=path, reason=reason_of(error)),
            message("Check the path given"),
        ) from error


def _lines(file: BinaryIO) -> Iterable[bytes]:
    """Return the lines of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark."""
    encoding = marked_encoding(file.read(4))
    file.seek(0)
    if encoding in (None, "utf-8-sig"):
        return file
    text = io.TextIOWrapper(file, encoding, errors="replace", newline="\n")
    return (line.encode("utf-8", "replace") for line in text)


def _parse_line(line: bytes) -> MetadataEntry | None:
    try:
        entry = parse_entry(decode_text(line))
    except UnicodeDecodeError:
        return None
    return entry if entry is not None and isinstance(entry.get("path"), str) else None


def listed(things: Sequence[object], count: int = 0) -> str:
    """Return the first ten items with commas, and an ellipsis if there are more, or if `count` is larger."""
    return ", ".join(map(str, things[:10])) + (", …" if max(count, len(things)) > len(things[:10]) else "")


def _no_line_fits(path: UPath, wanted: Sequence[str], present: Sequence[str]) -> MetadataError:
    absent = [name for name in wanted if name not in present]
    return MetadataError(
        message(
            "no line of {path} has {value}, as caption_template asks; the fields are {present}",
            path=path,
            value=", ".join(absent) or ", ".join(wanted) + " together",
            present=listed(present),
        ),
        message("Name fields that are there, or leave caption_template out"),
    )


def _unambiguous(by_path: dict[str, str | None], key_of: Callable[[str], str]) -> dict[str, str | None]:
    table: dict[str, str | None] = {}
    ambiguous = set()
    for path, description in by_path.items():
        key = key_of(path)
        if table.setdefault(key, description) != description:
            ambiguous.add(key)
    return {key: description for key, description in table.items() if key not in ambiguous}


def check_matches(captions: Captions, names_by_archive: Iterable[tuple[str, list[str]]]) -> None:
    """Check that the metadata match at least one clip.

    Raises:
        MetadataError: no clip of any archive matches, a mistake better found before hours of encoding.
    """
    seen = 0
    example = None
    for _, names in names_by_archive:
        for name in names:
            if captions.find(name)[0]:
                return
        seen += len(names)
        example = example or next(iter(names), None)
    if example is not None:
        raise MetadataError(
            message(
                "{source} matches none of the {seen:,} clips: it has, for one, {next!r}, the archives {example!r}",
                source=captions.source,
                seen=seen,
                next=next(iter(captions.by_path)),
                example=example,
            ),
            message("Make the paths, file names or stems agree, or leave the metadata out"),
        )

"""Descriptions of clips: from the settings, `metadata.jsonl`, or a file beside the clip."""

from __future__ import annotations

import codecs
import io
import json
import math
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.errors import MetadataError, reason_of
from musicgen_core.language import message
from musicgen_core.texts import MAX_CHARACTERS, decode_text, marked_encoding, shorten, template_fields

if TYPE_CHECKING:
    from musicgen_core.data.members import Sidecar

_DEFAULTS = TokenizeSettings()
MetadataEntry = dict[str, Any]


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
            problems = ((sidecar.suffix, problem_of(sidecar)) for sidecar in sidecars)
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
        by_name=_unambiguous((keys(path)[1], text) for path, text in by_path.items()),
        by_stem=_unambiguous((keys(path)[2], text) for path, text in by_path.items()),
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
    return entry if entry and isinstance(entry.get("path"), str) else None


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


def _unambiguous(entries: Iterable[tuple[str, str | None]]) -> dict[str, str | None]:
    table: dict[str, str | None] = {}
    ambiguous = set()
    for key, description in entries:
        if table.setdefault(key, description) != description:
            ambiguous.add(key)
    return {key: description for key, description in table.items() if key not in ambiguous}


def parse_entry(text: str) -> MetadataEntry | None:
    """Parse a JSON object; return None for anything else."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):  # the latter for brackets nested thousands deep
        return None
    return entry if isinstance(entry, dict) else None


def own_description(entry: MetadataEntry) -> str | None:
    """Return the entry's `description`, if it is a string."""
    description = entry.get("description")
    return clean(description) if isinstance(description, str) else None


def describe_sidecar(sidecar: Sidecar, template: str | None) -> str | None:
    """Return the description in a sidecar: a `.json` is read as a metadata entry, a `.txt` verbatim on one line."""
    if sidecar.suffix == ".txt":
        return clean(" ".join(sidecar.text.split()))
    entry = parse_entry(sidecar.text)
    return None if entry is None else fill_template(template, entry) or own_description(entry)


def problem_of(sidecar: Sidecar) -> str:
    """Return why a sidecar gives no description; empty if it may give one."""
    is_no_entry = sidecar.suffix == ".json" and parse_entry(sidecar.text) is None
    return sidecar.problem or ("is not a JSON object" if is_no_entry else "")


def fill_template(template: str | None, entry: MetadataEntry) -> str | None:
    """Fill `"{genre}, {bpm} bpm"` to `"techno, 128 bpm"`; None without a template or with a missing or blank field."""
    if template is None:
        return None
    values = {name: field_text(entry.get(name)) for name in template_fields(template)}
    return None if None in values.values() else clean(template.format_map(values))


def field_text(value: Any) -> str | None:
    """Return a field as people write it: `120.0` → `120`, `true` → `yes`, a list with commas; None if empty.

    Whole numbers are written in full, others with six digits. Objects and nested lists give None.
    """
    if isinstance(value, list):
        return ", ".join(filter(None, map(_scalar_text, value))) or None
    return _scalar_text(value)


def _scalar_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else None  # NaN is pandas' null
    return clean(str(value)) if isinstance(value, int | str) else None


def clean(text: str) -> str | None:
    """Strip whitespace and replace lone surrogates, which UTF-8 can't encode, by `?`; None if nothing is left."""
    return text.strip().encode("utf-8", "replace").decode() or None

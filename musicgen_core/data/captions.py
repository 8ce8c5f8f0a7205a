"""Descriptions of clips: from the settings, `metadata.jsonl`, or a file beside the clip."""

from __future__ import annotations

import codecs
import io
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

from upath import UPath

from musicgen_core import storage
from musicgen_core.config import TokenizeSettings
from musicgen_core.data.archive import archive_stem, is_archive_name
from musicgen_core.data.caption_fields import (
    GROUP,
    PREFIX,
    MetadataEntry,
    clean,
    field_text,
    own_description,
    parse_entry,
    tempo_of,
    texts_for_training,
    with_categories,
)
from musicgen_core.data.field_types import WrongValues, wrong_values
from musicgen_core.data.sentences import without_vocals
from musicgen_core.data.standing_out import traits_of
from musicgen_core.errors import MetadataError, reason_of
from musicgen_core.exclusions import Exclusion, measured
from musicgen_core.language import message
from musicgen_core.texts import MAX_CHARACTERS, decode_text, marked_encoding, shorten, template_fields

if TYPE_CHECKING:
    from musicgen_core.data.members import Sidecar

METADATA = "metadata.jsonl"
_DEFAULTS = TokenizeSettings()


@dataclass(frozen=True)
class ClipTexts:
    """The texts of a clip.

    Attributes:
        description: what the clip sounds like; None if there is no description.
        fields: texts that training may add to it (`texts_for_training`).
        group: clips of one group, such as a song, are never on both sides of the validation split.
        traits: reason for each kind of clip to leave out that the clip is of; an empty text for those that it isn't.
    """

    description: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    traits: Mapping[Exclusion, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Captions:
    """Texts of clips, looked up by archive and path, then by path, by file name, and by stem.

    Attributes:
        source: the metadata file.
        by_archive: texts of entries that name their archive, by `STEM/PATH`, in the file's order.
        by_path: texts of the other entries, by path, in the file's order.
        by_name: the same by file name, without names that have different descriptions.
        by_stem: the same by stem, without stems that have different descriptions.
        broken_lines: line numbers, from 1, of unusable lines.
        duplicate_lines: line numbers of entries ignored because an earlier one has the same path.
        incomplete_lines: line numbers of entries that lack fields of the template.
        wrong: values of the entries that can't be used.
    """

    source: str
    by_archive: dict[str, ClipTexts]
    by_path: dict[str, ClipTexts]
    by_name: dict[str, ClipTexts]
    by_stem: dict[str, ClipTexts]
    broken_lines: tuple[int, ...] = ()
    duplicate_lines: tuple[int, ...] = ()
    incomplete_lines: tuple[int, ...] = ()
    wrong: WrongValues = field(default_factory=WrongValues)

    @property
    def entries(self) -> int:
        """Return the number of entries used."""
        return len(self.by_archive) + len(self.by_path)

    @property
    def paths(self) -> Iterator[str]:
        """Return the path of each entry, after its archive's stem if it names one."""
        return chain(self.by_archive, self.by_path)

    def find(self, member: str, archive: str = "") -> ClipTexts | None:
        """Return the texts of a member of the archive with this stem, or None without an entry."""
        match = self.match(member, archive)
        return None if match is None else self.tables[match[0]][match[1]]

    def match(self, member: str, archive: str = "") -> tuple[int, str] | None:
        """Return the entry that matches a member as (index into `tables`, key), or None."""
        path, name, stem = keys(member)
        for index, (table, key) in enumerate(zip(self.tables, (f"{archive}/{path}", path, name, stem), strict=True)):
            if key in table:
                return index, key
        return None

    @property
    def tables(self) -> tuple[dict[str, ClipTexts], ...]:
        """Return the lookup tables by descending precedence."""
        return self.by_archive, self.by_path, self.by_name, self.by_stem


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
    """Composes the texts of an archive's clips from the settings, `metadata` and sidecar files.

    Attributes:
        settings: a caption for all clips, or how descriptions are made from fields.
        metadata: loaded with the same settings.
        archive: stem of the archive.
    """

    settings: TokenizeSettings = _DEFAULTS
    metadata: Captions | None = None
    archive: str = ""

    @property
    def uses_sidecars(self) -> bool:
        """Return whether sidecar files can affect descriptions."""
        return self.settings.caption is None

    def describe(self, member: str, *sidecars: Sidecar) -> str | None:
        """Return the description of a clip, with prefix and shortened for T5, or None."""
        return self.texts(member, *sidecars).description

    def texts(self, member: str, *sidecars: Sidecar) -> ClipTexts:
        """Return the texts of a clip: the description has the prefix, and is shortened for T5."""
        found, prefix = self._found(member, sidecars), self.settings.caption_prefix
        text = self._with_prefix(found.description)
        fields = {**found.fields, PREFIX: prefix} if found.fields and prefix else found.fields
        return ClipTexts(text and clean(shorten(text)), fields, found.group)

    def remark(self, member: str, *sidecars: Sidecar) -> str | None:
        """Return a remark on a clip's description: it was shortened, or a sidecar file is unusable; else None."""
        description = self._found(member, sidecars).description
        text = self._with_prefix(description)
        if text and len(text) > MAX_CHARACTERS:
            return f"its description of {len(text):,} characters was cut to {len(shorten(text)):,}"
        if not self.uses_sidecars or self._in_metadata(member).description is not None:
            return None
        for sidecar in sidecars:
            if description is None and (problem := problem_of(sidecar)):
                return f"the {sidecar.suffix} beside it {problem}"
            entry = parse_entry(sidecar.text) if sidecar.suffix == ".json" else None
            if found := next(wrong_values(entry or {}), None):
                return f"in the {sidecar.suffix} beside it {found}"
        return None

    def _in_metadata(self, member: str) -> ClipTexts:
        return (self.metadata.find(member, self.archive) if self.metadata else None) or ClipTexts()

    def _with_prefix(self, description: str | None) -> str | None:
        return clean(", ".join(filter(None, (self.settings.caption_prefix, description))))

    def _found(self, member: str, sidecars: Sequence[Sidecar]) -> ClipTexts:
        found = self._in_metadata(member)
        if self.settings.caption:
            return ClipTexts(self.settings.caption, group=found.group)
        if found.description is not None:
            return found
        texts = (describe_sidecar(sidecar, self.settings.caption_template) for sidecar in sidecars)
        beside = next((each for each in texts if each.description is not None), ClipTexts())
        return ClipTexts(beside.description, {**beside.fields, **found.fields}, found.group or beside.group)


def metadata_beside(archive: UPath) -> UPath | None:
    """Return the metadata.jsonl in an archive's directory, or None."""
    beside = archive.parent / METADATA
    return beside if beside.exists() else None


def load_captions(path: UPath, settings: TokenizeSettings = _DEFAULTS) -> Captions:
    """Read `metadata.jsonl`: one JSON object per line, with `path` and `description` or the template's fields.

    A file name or stem shared by clips with different descriptions matches none of them.

    Raises:
        MetadataError: the file is missing, none of its lines can be used, or none has all fields of the template.
    """
    template = settings.caption_template
    by_archive: dict[str, ClipTexts] = {}
    by_path: dict[str, ClipTexts] = {}
    broken, duplicate, incomplete = [], [], []
    wrong = WrongValues()
    fields: dict[str, None] = {}  # in order, of entries that lack some of the template's
    for number, _, entry in read_lines(path):
        if entry is None:
            broken.append(number)
            continue
        archive, key = named_archive(entry), keys(entry["path"])[0]
        table, key = (by_path, key) if archive is None else (by_archive, f"{archive}/{key}")
        if key in table:
            duplicate.append(number)
            continue
        wrong.add(number, entry)
        traits = traits_of(entry, measured(settings.exclude))
        texts = _texts_of(without_vocals(entry) if settings.remove_vocals else entry, template)
        table[key] = replace(texts, traits=traits)
        if template and fill_template(template, entry) is None:
            incomplete.append(number)
            fields.update((name, None) for name, value in entry.items() if field_text(value) is not None)
    if not by_archive and not by_path:
        raise MetadataError(
            message(
                "none of the lines of {path} is a JSON object with a path{lines}",
                path=path,
                lines=message(" (lines {numbers})", numbers=listed(broken)) if broken else "",
            ),
            message('Write one object a line, in UTF-8: {"path": "audio/track1.wav", "description": "…"}'),
        )
    if template and len(incomplete) == len(by_archive) + len(by_path):
        raise _no_line_fits(path, template_fields(template), list(fields))
    return Captions(
        source=str(path),
        by_archive=by_archive,
        by_path=by_path,
        by_name=_unambiguous((keys(path)[1], texts) for path, texts in by_path.items()),
        by_stem=_unambiguous((keys(path)[2], texts) for path, texts in by_path.items()),
        broken_lines=tuple(broken),
        duplicate_lines=tuple(duplicate),
        incomplete_lines=tuple(incomplete),
        wrong=wrong,
    )


def named_archive(entry: MetadataEntry) -> str | None:
    """Return the stem of the archive that an entry names in `archive`; None if it names none."""
    name = entry.get("archive")
    return archive_stem(PurePosixPath(name)) if isinstance(name, str) and is_archive_name(name) else None


def _texts_of(entry: MetadataEntry, template: str | None) -> ClipTexts:
    description = fill_template(template, entry) or own_description(entry)
    return ClipTexts(description, texts_for_training(entry), field_text(entry.get(GROUP)))


def read_lines(path: UPath) -> Iterator[tuple[int, bytes, MetadataEntry | None]]:
    """Yield (line number from 1, line in UTF-8, entry) of each line with text; the entry is None if it is unusable.

    Raises:
        MetadataError: the file can't be read.
    """
    try:
        # Staged, as fsspec reads a whole block again for each line. In bytes, so that a bad line affects no other.
        with storage.staged(path) as local, local.open("rb") as file:
            for number, line in enumerate(_lines(file), start=1):
                line = line.removeprefix(codecs.BOM_UTF8)  # on any line: files with one may have been joined
                if line := line.strip():
                    yield number, line, parse_line(line)
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


def parse_line(line: bytes) -> MetadataEntry | None:
    """Return the entry in a line of metadata; None if it is no JSON object with a path."""
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


def _unambiguous(entries: Iterable[tuple[str, ClipTexts]]) -> dict[str, ClipTexts]:
    table: dict[str, ClipTexts] = {}
    ambiguous = set()
    for key, texts in entries:
        known = table.setdefault(key, texts)
        if known.description != texts.description:
            ambiguous.add(key)
        elif known != texts:
            table[key] = ClipTexts(texts.description)
        elif known.traits != texts.traits:
            table[key] = replace(known, traits={})
    return {key: texts for key, texts in table.items() if key not in ambiguous}


def describe_sidecar(sidecar: Sidecar, template: str | None) -> ClipTexts:
    """Return the texts in a sidecar: a `.json` is read as a metadata entry, a `.txt` verbatim on one line."""
    if sidecar.suffix == ".txt":
        return ClipTexts(clean(" ".join(sidecar.text.split())))
    entry = parse_entry(sidecar.text)
    return ClipTexts() if entry is None else _texts_of(entry, template)


def problem_of(sidecar: Sidecar) -> str:
    """Return why a sidecar gives no description; empty if it may give one."""
    is_no_entry = sidecar.suffix == ".json" and parse_entry(sidecar.text) is None
    return sidecar.problem or ("is not a JSON object" if is_no_entry else "")


def fill_template(template: str | None, entry: MetadataEntry) -> str | None:
    """Fill `"{genre}, {bpm} bpm"` to `"techno, 128 bpm"`; None without a template or with a missing or blank field."""
    if template is None:
        return None
    whole = with_categories(entry)
    if (bpm := tempo_of(entry)) is not None:
        whole.setdefault("bpm", round(bpm))
    if isinstance(entry.get("tempo"), float):
        whole["tempo"] = None if entry.get("tempo_steady") is False else round(bpm or 0) or None
    values = {name: field_text(whole.get(name)) for name in template_fields(template)}
    return None if None in values.values() else clean(template.format_map(values))

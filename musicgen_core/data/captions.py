"""Descriptions of clips from `metadata.jsonl`."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from upath import UPath

from musicgen_core.errors import MetadataError


@dataclass(frozen=True)
class Captions:
    """Descriptions by member path, else by file name, else by stem.

    Attributes:
        source: the file that they come from.
        entries: how many lines could be used.
        broken_lines: numbers, from 1, of those that could not.
    """

    source: str
    by_path: dict[str, str | None]
    by_name: dict[str, str | None]
    by_stem: dict[str, str | None]
    entries: int
    broken_lines: tuple[int, ...]

    def find(self, member: str) -> tuple[bool, str | None]:
        """(whether the metadata know this member, its description)."""
        path = _normalize(member)
        name = PurePosixPath(path).name
        for table, key in ((self.by_path, path), (self.by_name, name), (self.by_stem, PurePosixPath(name).stem)):
            if key in table:
                return True, table[key]
        return False, None


def _normalize(path: str) -> str:
    return unicodedata.normalize("NFC", path.replace("\\", "/")).removeprefix("./")


def load_captions(path: UPath) -> Captions:
    """Read `metadata.jsonl`: one JSON object a line, with `path` and, if there is one, `description`.

    A file name or stem that stands for clips with different descriptions matches none of them.

    Raises:
        MetadataError: the file is missing, or none of its lines can be used.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = list(file)  # unlike splitlines, not split at U+2028 and the like, which JSON strings may hold
    except (OSError, UnicodeDecodeError) as error:
        raise MetadataError(f"the metadata file {path} can't be read ({error})", "Check the path given") from error
    by_path: dict[str, str | None] = {}
    broken = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        entry = _parse(line)
        if entry is None:
            broken.append(number)
        else:
            by_path.setdefault(*entry)
    if not by_path:
        raise MetadataError(
            f"none of the {len(lines)} lines of {path} is a JSON object with a path"
            + (f" (lines {', '.join(map(str, broken[:10]))})" if broken else ""),
            'Write one object a line: {"path": "audio/track1.wav", "description": "…"}',
        )
    return Captions(
        source=str(path),
        by_path=by_path,
        by_name=_unambiguous(by_path, lambda key: PurePosixPath(key).name),
        by_stem=_unambiguous(by_path, lambda key: PurePosixPath(key).stem),
        entries=len(by_path),
        broken_lines=tuple(broken),
    )


def _parse(line: str) -> tuple[str, str | None] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        return None
    description = entry.get("description")
    text = description.strip() if isinstance(description, str) else ""
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair, which JSON can hold and UTF-8 can't
    return _normalize(entry["path"]), text or None


def _unambiguous(by_path: dict[str, str | None], key_of: Callable[[str], str]) -> dict[str, str | None]:
    table: dict[str, str | None] = {}
    ambiguous = set()
    for path, description in by_path.items():
        key = key_of(path)
        if table.setdefault(key, description) != description:
            ambiguous.add(key)
    return {key: description for key, description in table.items() if key not in ambiguous}


def check_matches(captions: Captions, names_by_archive: Iterable[tuple[str, list[str]]]) -> None:
    """Look for one clip that the metadata know, and stop at the first.

    Raises:
        MetadataError: there is none in any archive: a mistake better found before hours of encoding.
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
            f"{captions.source} matches none of the {seen:,} clips: it has, for one, "
            f"{next(iter(captions.by_path))!r}, the archives {example!r}",
            "Make the paths, file names or stems agree, or leave the metadata out",
        )

"""Find archives at a location: a file, a directory or a glob, local or remote."""

from __future__ import annotations

import re
from collections.abc import Iterable

from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ArchiveError
from musicgen_core.language import as_message, message
from musicgen_core.wording import joined_sentences, named

_READ = r"\.(zip|tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz|tar\.zst|tzst)"
_SUFFIX = re.compile(f"{_READ}$", re.IGNORECASE)
_OTHER_KINDS = re.compile(
    r"\.(7z|rar|r\d\d|z\d\d|(zip|7z|rar|tar)\.\d{3}|zst|lz4?|lzma|tlz|lzh|lha|br|z|taz|gz|bz2|tbz|tb2|xz"
    r"|arj|ace|cab|sitx?|iso|dmg)$",
    re.IGNORECASE,
)
_INCOMPLETE = re.compile(rf"{_READ}\.(part|partial|filepart|crdownload|download|opdownload|aria2|tmp)$", re.IGNORECASE)
_PASSED_OVER = {
    _OTHER_KINDS: message("{names} not read, as only zips and tars are: unpack, and pack the files as a zip or tar"),
    _INCOMPLETE: message("{names} not read, as the name is that of an unfinished copy: copy or download again"),
}


def archive_stem(path: UPath) -> str:
    """Return the stem of an archive, the name of its shard: `archive_batch_0007.zip` → `archive_batch_0007`."""
    return _SUFFIX.sub("", path.name)


def find_archives(location: storage.Location) -> list[UPath]:
    """Return the archives of a file, a directory (not recursive) or a glob, in natural order.

    Raises:
        ArchiveError: no archive was found, or two have the same stem.
    """
    path = storage.as_path(location)
    if path.is_dir():
        found = _visible(entry for entry in path.iterdir() if _SUFFIX.search(entry.name) and entry.is_file())
    elif path.is_file():
        found = [path]
    else:
        found = _visible(storage.glob(location)) if re.search(r"[*?\[]", str(location)) else []
    if not found:
        raise ArchiveError(
            message(
                "no archives found at {location}{others}",
                location=location,
                others=joined_sentences(["", *passed_over(location)]),
            ),
            message(
                "Give a file, a directory that holds .zip or .tar archives, or a glob such as "
                "'data/archive_batch_*.zip'"
            ),
        )
    stems: dict[str, UPath] = {}
    for archive in found:
        twin = stems.setdefault(archive_stem(archive), archive)
        if twin is not archive:
            raise ArchiveError(
                message(
                    "{first} and {second} at {location} would both make the shard {stem}",
                    first=twin.name,
                    second=archive.name,
                    location=location,
                    stem=archive_stem(archive),
                ),
                message("Rename or move one of them"),
            )
    return sorted(found, key=lambda archive: (_natural(archive.name), archive.name))


def passed_over(location: storage.Location) -> list[str]:
    """Return sentences on ignored files of a directory that look like archives, with advice."""
    path = storage.as_path(location)
    if not path.is_dir():
        return []
    names = sorted(entry.name for entry in _visible(path.iterdir()) if not _SUFFIX.search(entry.name))
    remarks: list[str] = []
    for pattern, sentence in _PASSED_OVER.items():
        if found := [name for name in names if pattern.search(name) and (path / name).is_file()]:
            values = {"names": named(found)}
            remarks.append(as_message(sentence.format(**values), sentence, values))
    return remarks


def _visible(paths: Iterable[UPath]) -> list[UPath]:
    """Return the paths without macOS's `._archive.zip` files, which aren't archives."""
    return [path for path in paths if not path.name.startswith(".")]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

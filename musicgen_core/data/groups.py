"""Groups of clips that belong together, such as the clips of one song: validation holds out whole groups.

If clips of one song were on both sides of the split, the validation loss would also fall by memorizing the song.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from musicgen_core.data.members import CLIP_SUFFIXES

LONGEST_SONG = 32
"""Maximum clips of a song that is recognised by its clips' names; longer sequences are rather numbered songs"""
LONGEST_NUMBER = 16
"""Characters at the end of a name in which its number is searched, with separators"""
WIDEST = 1.5
"""Maximum ratio of the span of numbers of a song to its clips: the numbers of rejected clips are missing"""
_NUMBER = re.compile(r"[\W_]*(?<!\d)(\d{1,9})\Z")
"""The number at the end of a name, with what separates it"""


def stable_hash(text: str) -> int:
    """Return a hash below 2**64 that is the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def clip_hash(stem: str, member: str) -> int:
    """Return a hash of archive and member, below 2**64, that is the same on every machine."""
    return stable_hash(f"{stem}/{member}")


def group_hashes(stem: str, members: Sequence[str], groups: Sequence[str | None]) -> list[int]:
    """Return a hash of the group of each clip of an archive; equal ones belong together.

    Clips to which the metadata give the same group are one, in any archive. Other clips are one if they look like the
    clips of a song: in one folder of the archive, under one name with consecutive numbers, such as `song_000.wav` and
    `song_001.wav`. If all numbered clips of the folder have the same name, or more than 32, the numbers are taken for
    those of songs. All other clips are a group of their own, with their `clip_hash`, or one with the same sound in
    other formats, such as `a.wav` and `a.flac`. Archives that are added don't change the groups of others.

    Args:
        stem: the archive's stem.
        members: names of all clips of the archive.
        groups: group of each clip in the metadata, or None.
    """
    names = [None if group else _numbered(member) for member, group in zip(members, groups, strict=True)]
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for folder, song, number in filter(None, names):
        numbers[folder, song].append(number)
    songs_of_folder = Counter(folder for folder, _ in numbers)
    songs = {song for song, found in numbers.items() if songs_of_folder[song[0]] > 1 and _are_consecutive(found)}
    formats: dict[str, set[str]] = defaultdict(set)
    for member in members:
        formats[_stem(member)].add(member)
    hashes = []
    for member, group, name in zip(members, groups, names, strict=True):
        if group:
            hashes.append(stable_hash(f"group\0{group}"))
        elif name and name[:2] in songs:
            hashes.append(stable_hash("\0".join(("song", stem, *name[:2]))))
        else:
            twins = formats[_stem(member)]
            is_one = len({twin.lower() for twin in twins}) == 1  # also a.wav and a.WAV, which may be two sounds
            hashes.append(clip_hash(stem, member if is_one else min(twins)))
    return hashes


def _stem(member: str) -> str:
    """Return a name without the suffix of a clip."""
    stem, suffix = posixpath.splitext(member)
    return stem if suffix.lower() in CLIP_SUFFIXES else member


def _numbered(member: str) -> tuple[str, str, int] | None:
    """Return folder, name and number of a clip whose name ends in a number, else None."""
    folder, name = posixpath.split(member.replace("\\", "/"))
    stem = posixpath.splitext(name)[0]
    match = _NUMBER.search(stem, max(0, len(stem) - LONGEST_NUMBER))
    song = stem[: match.start()] if match else ""
    return (folder, song, int(match[1])) if match and any(map(str.isalpha, song)) else None


def _are_consecutive(numbers: Sequence[int]) -> bool:
    return 2 <= len(numbers) <= LONGEST_SONG and max(numbers) - min(numbers) < WIDEST * len(numbers)

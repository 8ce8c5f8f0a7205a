"""Short players of clips, read again from their archives."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from upath import UPath

from musicgen_core import storage
from musicgen_core.codes import SAMPLE_RATE
from musicgen_core.config import ReadingSettings
from musicgen_core.data.archive import open_archive
from musicgen_core.data.audio import decode, resample
from musicgen_core.data.members import Member, limits_of
from musicgen_core.embedding import SMALL_MP3_LEVEL, data_url, encode_mp3

logger = logging.getLogger(__name__)

SECONDS = 5.0
"""Length of a player, from the middle of its clip"""
LARGEST_BYTES = 256 << 20
"""Clips that are larger have no player: to be decoded they would take memory"""
PATIENCE_SECONDS = 120.0
"""How long archives are read; a compressed tar has to be unpacked up to the clip"""

Key = tuple[str, str]
"""Archive and path of a clip"""


@dataclass
class Players:
    """Players of clips as data URLs, and the archives of which there are none as they are remote tars."""

    urls: dict[Key, str] = field(default_factory=dict)
    remote_tars: list[str] = field(default_factory=list)


def players_of(
    wanted: Iterable[Key],
    archives: Mapping[str, UPath],
    settings: ReadingSettings,
    patience: float = PATIENCE_SECONDS,
) -> Players:
    """Return players of clips. A clip that can't be read has none.

    Zips are read in place, also remote ones: their directory, then only these clips.

    Args:
        wanted: archives and paths of the clips.
        archives: locations of the archives by file name.
        settings: how to read archives.
        patience: seconds after which no more archive or clip is read.
    """
    deadline = time.monotonic() + patience
    found = Players()
    by_archive: dict[str, set[str]] = defaultdict(set)
    for archive, path in wanted:
        by_archive[archive].add(path)
    for archive, paths in by_archive.items():
        if archive in archives:
            try:
                _read(found, archive, archives[archive], paths, settings, deadline)
            except Exception as error:  # of whatever type: the page appears without these players
                logger.debug("%s has no players: %s", archive, error)
    return found


def _read(
    found: Players, archive: str, location: UPath, paths: set[str], settings: ReadingSettings, deadline: float
) -> None:
    with open_archive(location, limits_of(settings), settings.name_encoding) as opened:
        if opened.clip_count is None and not storage.is_local(location):
            found.remote_tars.append(archive)
            return
        for member in opened.clips():
            if not paths or time.monotonic() > deadline:
                return
            if member.name in paths:
                paths.remove(member.name)
                try:
                    found.urls[archive, member.name] = _player(member)
                except Exception as error:
                    logger.debug("%s in %s has no player: %s", member.name, archive, error)


def _player(member: Member) -> str:
    """Return the middle of a clip as the data URL of an MP3.

    Raises:
        ClipRejected: it can't be decoded, or is too large.
    """
    if member.size > LARGEST_BYTES:
        raise ValueError(f"its {member.size:,} bytes are too many")
    with member.open() as file:
        clip = decode(file, LARGEST_BYTES)
    samples = round(SECONDS * clip.rate)
    start = max(0, (len(clip.samples) - samples) // 2)
    audio = resample(clip.samples[start : start + samples], clip.rate)
    return data_url("audio/mpeg", encode_mp3(np.clip(audio, -1, 1), SAMPLE_RATE, SMALL_MP3_LEVEL))

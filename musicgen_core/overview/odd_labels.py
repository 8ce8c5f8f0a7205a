"""Labels at odds with the rest: clips that differ from the other clips of their song, and labels that are rare.

song   In a song of at least four clips that have a key (tempo, genre), at least three quarters have the same, and
       the clip has another with a high confidence. Relative keys and tempos that are twice or half as fast are the
       most frequent errors of measuring, not of the data, so they don't count.
rare   Fewer than one percent of the clips have the label, of at least 200, and the tagger is confident.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from musicgen_core.data.caption_fields import CONFIDENCE, GROUP, TAGS, field_text, tempo_of, texts_of
from musicgen_core.data.groups import group_hashes
from musicgen_core.data.standing_out import share_of
from musicgen_core.language import message
from musicgen_core.music_theory import PITCH_CLASSES
from musicgen_core.overview.clips import Clip

LEAST_CLIPS = 4
MAJORITY = 0.75
SURE = {"key": 0.7, "tempo": 0.7, "genre": 0.5, "label": 0.5}
"""Minimum confidence of what is at odds"""
CLOSE, FAR = 0.04, 0.08
"""Relative differences between tempos: up to `CLOSE` they are the same, from `FAR` they differ"""
RARE_SHARE, LEAST_FOR_RARE = 0.01, 200
_TONICS = {
    name: number
    for number, names in enumerate(("C", "C# Db", "D", "D# Eb", "E", "F", "F# Gb", "G", "G# Ab", "A", "A# Bb", "B"))
    for name in names.split()
}


class _InSong(NamedTuple):
    """What is compared within a song; of 139,000 clips in one archive it takes 60 MB."""

    clip: int
    group: str | None
    key: str | None
    key_confidence: float
    tempo: float | None
    tempo_confidence: float
    genres: tuple[str, ...]
    genre_confidence: float


class Odd(NamedTuple):
    """A clip at odds with its song: its index, how sure that is, and why."""

    clip: int
    degree: float
    reason: str


def in_song(index: int, clip: Clip, genres: Sequence[str]) -> _InSong:
    """Return what is compared of a clip."""
    confidence = clip.entry.get(CONFIDENCE)
    confidence = confidence if isinstance(confidence, Mapping) else {}
    tags = confidence.get(TAGS)
    genres = tuple(genres)
    return _InSong(
        clip=index,
        group=field_text(clip.entry.get(GROUP)),
        key=field_text(clip.entry.get("key")),
        key_confidence=share_of(confidence, "key") or 0.0,
        tempo=tempo_of(clip.entry),
        tempo_confidence=share_of(confidence, "tempo") or 0.0,
        genres=genres,
        genre_confidence=(share_of(tags, genres[0]) or 0.0) if genres and isinstance(tags, Mapping) else 0.0,
    )


def odd_in_songs(stem: str, paths: Sequence[str], clips: Sequence[_InSong]) -> Iterator[Odd]:
    """Yield the clips of an archive that are at odds with their song, one reason for each."""
    songs: dict[int, list[_InSong]] = defaultdict(list)
    for key, clip in zip(group_hashes(stem, paths, [clip.group for clip in clips]), clips, strict=True):
        songs[key].append(clip)
    for song in songs.values():
        if len(song) >= LEAST_CLIPS:
            found = {odd.clip: odd for odd in (*_odd_genres(song), *_odd_tempos(song), *_odd_keys(song))}
            yield from found.values()


def _odd_keys(song: Sequence[_InSong]) -> Iterator[Odd]:
    keyed = [clip for clip in song if clip.key]
    most = _majority([str(clip.key) for clip in keyed])
    if most is None:
        return
    value, number = most
    for clip in keyed:
        if clip.key != value and clip.key_confidence >= SURE["key"] and not _are_relative(str(clip.key), value):
            reason = message(
                "{key}, and {number} of {total} clips of the song in {most}",
                key=clip.key,
                number=number,
                total=len(keyed),
                most=value,
            )
            yield Odd(clip.clip, clip.key_confidence, reason)


def _odd_tempos(song: Sequence[_InSong]) -> Iterator[Odd]:
    timed = [(clip, clip.tempo) for clip in song if clip.tempo]
    if len(timed) < LEAST_CLIPS:
        return
    middle = median(tempo for _, tempo in timed)
    alike = sum(abs(tempo / middle - 1) <= CLOSE for _, tempo in timed)
    for clip, tempo in timed if alike >= MAJORITY * len(timed) else ():
        distance = min(abs(tempo * factor / middle - 1) for factor in (0.5, 1, 2))
        if distance >= FAR and clip.tempo_confidence >= SURE["tempo"]:
            reason = message(
                "{tempo:g} bpm, and {number} of {total} clips of the song have about {most:.0f}",
                tempo=tempo,
                number=alike,
                total=len(timed),
                most=middle,
            )
            yield Odd(clip.clip, clip.tempo_confidence, reason)


def _odd_genres(song: Sequence[_InSong]) -> Iterator[Odd]:
    known = [clip for clip in song if clip.genres]
    most = _majority([clip.genres[0] for clip in known])
    if most is None:
        return
    value, number = most
    for clip in known:
        if value not in clip.genres and clip.genre_confidence >= SURE["genre"]:
            reason = message(
                "{genre}, and {number} of {total} clips of the song are {most}",
                genre=clip.genres[0],
                number=number,
                total=len(known),
                most=value,
            )
            yield Odd(clip.clip, clip.genre_confidence, reason)


def _majority(values: Sequence[str]) -> tuple[str, int] | None:
    """Return the value that at least three quarters have, and how many have it; None if there is none."""
    if len(values) < LEAST_CLIPS:
        return None
    value, number = Counter(values).most_common(1)[0]
    return (value, number) if number >= MAJORITY * len(values) else None


def _are_relative(one: str, other: str) -> bool:
    """Return whether two keys have the same notes, such as C major and A minor, or are the same by another name."""
    return one.lower() == other.lower() or (_notes(one) is not None and _notes(one) == _notes(other))


def _notes(key: str) -> int | None:
    """Return the pitch class of the major key with the notes of a key."""
    tonic, _, mode = key.partition(" ")
    number = _TONICS.get(tonic)
    if number is None or mode.lower() not in ("major", "minor"):
        return None
    return (number + (3 if mode.lower() == "minor" else 0)) % PITCH_CLASSES


def confident_labels(entry: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the labels of which the tagger is confident; those that a person wrote have no confidence."""
    confidence = entry.get(CONFIDENCE)
    tags = confidence.get(TAGS) if isinstance(confidence, Mapping) else None
    if not isinstance(tags, Mapping):
        return
    for label in texts_of(entry.get(TAGS)):
        if (sure := share_of(tags, label)) is not None and sure >= SURE["label"]:
            yield label, sure

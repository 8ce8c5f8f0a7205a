"""Count the fields of all clips of a data set, and find those that stand out, in one pass over 139,000 and more."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePosixPath
from typing import get_args

from musicgen_core.data.archive import archive_stem
from musicgen_core.data.caption_fields import field_text, tempo_of, texts_of, with_categories
from musicgen_core.data.standing_out import degree, is_of_kind, reason_for
from musicgen_core.exclusions import Exclusion, measured
from musicgen_core.language import message
from musicgen_core.music_tags import VOCABULARY
from musicgen_core.overview import odd_labels
from musicgen_core.overview.clips import Clip

SHOWN = 8
"""Clips of a kind that the page shows, each with a player of 40 kB"""
KINDS = measured(get_args(Exclusion))
KEYWORDS = "keywords"
MOST_LABELS = 10_000
"""Labels that are counted: those that people wrote may all be different"""
LONGEST_TEXT = 300


@dataclass(frozen=True)
class Example:
    """A clip that stands out.

    Attributes:
        archive: file name of its archive.
        reason: the values by which it stands out.
        twin: archive and path of a near duplicate.
    """

    archive: str
    path: str
    reason: str
    description: str | None = None
    twin: tuple[str, str] | None = None


@dataclass
class StandingOut:
    """The clips that stand out in one way: how many there are, and the most extreme ones."""

    count: int = 0
    _top: list[tuple[float, int, Example]] = field(default_factory=list)

    def add(self, clip: Clip, degree: float, reason: str) -> None:
        text = clip.description
        self.add_example(Example(clip.archive, clip.path, reason, text and text[:LONGEST_TEXT]), degree)

    def add_example(self, example: Example, degree: float) -> None:
        self.count += 1
        if len(self._top) == SHOWN and degree <= self._top[0][0]:
            return  # of equal ones the first are shown
        entry = (degree, -self.count, example)
        if len(self._top) < SHOWN:
            heapq.heappush(self._top, entry)
        else:
            heapq.heapreplace(self._top, entry)

    @property
    def examples(self) -> list[Example]:
        """The most extreme ones, the most extreme first."""
        return [example for _, _, example in sorted(self._top, key=lambda entry: entry[:2], reverse=True)]


@dataclass
class Findings:
    """What a data set consists of.

    Attributes:
        clips: number of clips.
        archives: names of the archives that have clips.
        seconds: length of the clips whose length is known.
        tempos, loudness, lengths: bpm, LUFS and seconds of the clips that have them.
        keys: number of clips by key.
        labels: number of clips by category and label.
        without: number of clips without tempo, key and description.
        kinds: clips that stand out, by kind.
        songs: clips at odds with the others of their song.
        rare: rare labels, one clip of each.
        duplicates: clusters of near duplicates; None if they aren't known, as there are no tokens yet.
    """

    clips: int = 0
    archives: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tempos: array[float] = field(default_factory=lambda: array("d"))
    loudness: array[float] = field(default_factory=lambda: array("d"))
    lengths: array[float] = field(default_factory=lambda: array("d"))
    keys: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(
        default_factory=lambda: {category: Counter() for category in (*VOCABULARY, KEYWORDS)}
    )
    without: Counter[str] = field(default_factory=Counter)
    kinds: dict[Exclusion, StandingOut] = field(default_factory=lambda: {kind: StandingOut() for kind in KINDS})
    songs: StandingOut = field(default_factory=StandingOut)
    rare: StandingOut = field(default_factory=StandingOut)
    duplicates: StandingOut | None = None

    @property
    def most_frequent(self) -> list[tuple[str, int]]:
        """Return the labels of all categories, the most frequent first."""
        whole: Counter[str] = Counter()
        for counts in self.labels.values():
            whole.update(counts)
        return whole.most_common()


def findings_of(clips: Iterable[Clip]) -> Findings:
    """Count the fields of clips, which come in the order of their archives, and find those that stand out."""
    found = Findings()
    sure: dict[str, _Sure] = {}
    for archive, of_archive in groupby(clips, key=lambda clip: clip.archive):
        found.archives.append(archive)
        for odd_clip, odd in _in_archive(found, sure, archive, of_archive):
            found.songs.add(odd_clip, odd.degree, odd.reason)
    _add_rare(found, sure)
    return found


@dataclass
class _Sure:
    """How many clips have a label with confidence, and the one with the highest."""

    count: int
    confidence: float
    clip: Clip


def _in_archive(
    found: Findings, sure: dict[str, _Sure], archive: str, clips: Iterable[Clip]
) -> Iterator[tuple[Clip, odd_labels.Odd]]:
    """Count the clips of an archive, and yield those at odds with their song."""
    compared, paths, descriptions = [], [], []
    for index, clip in enumerate(clips):
        genres = _count(found, sure, clip)
        compared.append(odd_labels.in_song(index, clip, genres))
        paths.append(clip.path)
        descriptions.append(clip.description)
    for odd in odd_labels.odd_in_songs(archive_stem(PurePosixPath(archive)), paths, compared):
        yield Clip(archive, paths[odd.clip], {}, descriptions[odd.clip], None), odd


def _count(found: Findings, sure: dict[str, _Sure], clip: Clip) -> list[str]:
    """Add a clip to what is found, and return its genres."""
    entry = clip.entry
    whole = with_categories(entry)
    found.clips += 1
    if clip.seconds is not None:
        found.seconds += clip.seconds
        found.lengths.append(clip.seconds)
    if (tempo := tempo_of(entry)) is not None:
        found.tempos.append(tempo)
    if (loudness := _number(entry.get("loudness"))) is not None:
        found.loudness.append(loudness)
    key = field_text(entry.get("key"))
    if key:
        found.keys[key[:40]] += 1
    values = {"tempo": tempo, "key": key, "description": clip.description}
    found.without.update(name for name, value in values.items() if not value)
    for category, counts in found.labels.items():
        for label in dict.fromkeys(text.lower()[:100] for text in texts_of(whole.get(category))):
            if label in counts or len(counts) < MOST_LABELS:
                counts[label] += 1
    for label, confidence in odd_labels.confident_labels(entry):
        known = sure.get(label.lower())
        if known is None and len(sure) < MOST_LABELS:
            sure[label.lower()] = _Sure(1, confidence, clip._replace(entry={}))
        elif known is not None:
            known.count += 1
            if confidence > known.confidence:
                known.confidence, known.clip = confidence, clip._replace(entry={})
    for kind, standing_out in found.kinds.items():
        if is_of_kind(entry, kind):
            standing_out.add(clip, degree(entry, kind) or 0.0, reason_for(entry, kind))
    return [text.lower() for text in texts_of(whole.get("genre"))]


def _add_rare(found: Findings, sure: dict[str, _Sure]) -> None:
    if found.clips < odd_labels.LEAST_FOR_RARE:
        return
    numbers = dict(found.most_frequent)
    for label, one in sure.items():
        if (number := numbers.get(label, one.count)) < odd_labels.RARE_SHARE * found.clips:
            reason = message(
                "{label} with a confidence of {confidence:.2f}; {number:,} of {total:,} clips have this label",
                label=label,
                confidence=one.confidence,
                number=number,
                total=found.clips,
            )
            found.rare.add(one.clip, one.confidence, reason)


def _number(value: object) -> float | None:
    return (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) and -200 < value < 100 else None
    )


def duplicates_of(clusters: Iterable[Sequence[tuple[str, str]]]) -> StandingOut:
    """Return clusters of near duplicates, given the archive and path of each clip, the largest first."""
    found = StandingOut()
    for (archive, path), twin, *others in clusters:
        values = {"archive": twin[0], "path": twin[1]}
        if others:
            reason = message(
                "near duplicate of {path} in {archive}, and of {number:,} more", **values, number=len(others)
            )
        else:
            reason = message("near duplicate of {path} in {archive}", **values)
        found.add_example(Example(archive, path, reason, twin=twin), 2.0 + len(others))
    return found

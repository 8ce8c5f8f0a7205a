"""What a data set consists of, from the entries of its clips."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from musicgen_core.overview.clips import Clip, clips_of_lines
from musicgen_core.overview.findings import SHOWN, Findings, duplicates_of, findings_of


def found_in(*entries: dict[str, Any], archive: str = "a.zip") -> Findings:
    named = [{"path": f"{number:03d}.wav", **entry} for number, entry in enumerate(entries)]
    keys = [(archive, entry["path"]) for entry in named]
    return findings_of(clips_of_lines(keys, (json.dumps(entry).encode() for entry in named)))


def test_fields_are_counted_and_their_absence_too() -> None:
    found = found_in(
        {"description": "x", "tags": ["jazz", "Piano", "own"], "tempo": 90.5, "key": "A minor", "duration": 2.5},
        {"tags": ["jazz", "no vocals"], "tempo": None, "key": None, "loudness": -20.0, "duration": "soon"},
    )
    assert (found.clips, found.archives, found.seconds) == (2, ["a.zip"], 2.5)
    assert (list(found.tempos), list(found.loudness), list(found.lengths)) == ([90.5], [-20.0], [2.5])
    assert found.keys == {"A minor": 1}
    assert found.labels["genre"] == {"jazz": 2} and found.labels["instruments"] == {"piano": 1}
    assert found.labels["vocals"] == {"no vocals": 1} and found.labels["keywords"] == {"own": 1}
    assert found.most_frequent[0] == ("jazz", 2)
    assert found.without == {"tempo": 1, "key": 1, "description": 1}


def test_equally_frequent_labels_keep_their_order() -> None:
    tags = [f"label {number}" for number in range(20)]
    assert list(found_in({"tags": [*tags, "Label 3"]}).labels["keywords"]) == tags


def test_of_clips_that_stand_out_the_most_extreme_are_kept() -> None:
    shares = [0.9 + number / 1000 for number in range(40)]
    found = found_in(*({"silence": share} for share in [*shares, 0.1])).kinds["silent"]
    assert found.count == 40 and len(found.examples) == SHOWN
    assert [example.path for example in found.examples] == [f"{number:03d}.wav" for number in range(39, 39 - SHOWN, -1)]
    assert found.examples[0].reason == "silent: 93.9 % of its time"


def test_of_equally_extreme_clips_the_first_are_kept() -> None:
    found = found_in(*[{"speech": 1.0}] * 20).kinds["speech"]
    assert [example.path for example in found.examples] == [f"{number:03d}.wav" for number in range(SHOWN)]


def song(*entries: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"group": "a song", "confidence": {"key": 0.9, "tempo": 0.9, "tags": {"jazz": 0.9}}, **one} for one in entries
    ]


@pytest.mark.parametrize(
    ("rest", "odd", "reason"),
    [
        ({"key": "A minor"}, {"key": "F# major"}, "F# major, and 4 of 5 clips of the song in A minor"),
        ({"tempo": 100.0}, {"tempo": 130.0}, "130 bpm, and 4 of 5 clips of the song have about 100"),
        ({"tags": ["folk"]}, {"tags": ["jazz"]}, "jazz, and 4 of 5 clips of the song are folk"),
    ],
)
def test_a_clip_unlike_its_song_is_at_odds(rest: dict[str, Any], odd: dict[str, Any], reason: str) -> None:
    found = found_in(*song(rest, rest, odd, rest, rest)).songs
    assert [(example.path, example.reason) for example in found.examples] == [("002.wav", reason)]


@pytest.mark.parametrize(
    ("rest", "other"),
    [
        ({"key": "A minor"}, {"key": "C major"}),  # the relative key
        ({"key": "C# minor"}, {"key": "Db minor"}),
        ({"key": "A minor"}, {"key": "F# major", "confidence": {"key": 0.6}}),
        ({"key": "A minor"}, {"key": "F# major", "confidence": {}}),  # written by hand
        ({"tempo": 70.0}, {"tempo": 140.0}),  # an octave error
        ({"tempo": 100.0}, {"tempo": 103.0}),
        ({"tags": ["folk"]}, {"tags": ["jazz", "folk"]}),
    ],
)
def test_errors_of_measuring_are_not_at_odds(rest: dict[str, Any], other: dict[str, Any]) -> None:
    assert found_in(*song(rest, rest, rest, rest, other)).songs.count == 0


def test_clips_of_other_songs_and_of_songs_without_a_majority_are_not_compared() -> None:
    odd, rest = {"key": "F# major"}, {"key": "A minor"}
    others = [{**one, "group": str(number)} for number, one in enumerate(song(odd, *[rest] * 4))]
    assert found_in(*others).songs.count == 0
    assert found_in(*song(odd, odd, rest, rest, rest)).songs.count == 0
    assert found_in(*song(odd, rest, rest)).songs.count == 0


def test_clips_numbered_like_a_song_are_compared() -> None:
    entries = [
        *song(*[{"key": "A minor"}] * 4, {"key": "F# major"}),
        {"path": "other_000.wav"},
        {"path": "other_001.wav"},
    ]
    named = [{"path": f"one_{number:03d}.wav", **entry} for number, entry in enumerate(entries)]
    for entry in named:
        entry.pop("group", None)
    assert [example.path for example in found_in(*named).songs.examples] == ["one_004.wav"]


def test_a_label_is_rare_if_few_clips_have_it_with_confidence() -> None:
    common = {"tags": ["rock"], "confidence": {"tags": {"rock": 0.9}}}
    rare = {"tags": ["sitar", "harp"], "confidence": {"tags": {"sitar": 0.8, "harp": 0.3}}}
    found = found_in(*[common] * 250, rare).rare
    assert [example.path for example in found.examples] == ["250.wav"]
    assert found.examples[0].reason == "sitar with a confidence of 0.80; 1 of 251 clips have this label"
    assert found_in(*[common] * 50, rare).rare.count == 0  # too few clips to tell
    assert found_in(*[common] * 250, *[rare] * 3).rare.count == 0  # more than one percent


def test_clusters_of_near_duplicates_are_listed_by_size() -> None:
    pair = [("a.zip", "1.wav"), ("b.zip", "2.wav")]
    three = [("a.zip", "3.wav"), ("a.zip", "4.wav"), ("c.zip", "5.wav")]
    found = duplicates_of([pair, three])
    assert found.count == 2 and [example.path for example in found.examples] == ["3.wav", "1.wav"]
    assert found.examples[0].twin == ("a.zip", "4.wav")
    assert found.examples[0].reason == "near duplicate of 4.wav in a.zip, and of 1 more"


def test_entries_may_hold_anything() -> None:
    hostile: list[Any] = [[], {}, [1], {"a": 1}, 10**400, "x" * 10_000, None, True, -1, 1.5, "NaN"]
    names = ("tags", "tempo", "key", "loudness", "silence", "confidence", "duration", "group", "vocals", "genre")
    found = found_in(*({name: value} for name in names for value in hostile))
    assert found.clips == len(names) * len(hostile)


class Entry(dict[str, Any]):
    """An entry that can be referred to weakly."""


def test_clips_are_read_once_and_their_entries_are_not_kept() -> None:
    entries: list[weakref.ref[Entry]] = []
    kept: list[int] = []

    def clips() -> Iterator[Clip]:
        for number in range(300):
            label = f"label {number}"
            entry = Entry(silence=1.0, tags=[label], confidence={"tags": {label: 0.9}})
            entries.append(weakref.ref(entry))
            yield Clip(f"{number // 100}.zip", f"{number}.wav", entry, "x", 1.0)
            kept.append(sum(one() is not None for one in entries))

    found = findings_of(clips())
    assert (found.clips, len(found.archives), len(kept)) == (300, 3, 300)
    assert found.rare.count == 300 and max(kept) <= 3

"""Which clips are one group for the validation split: those of one song, and those that the metadata put together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.data.dataset import split
from musicgen_core.data.groups import LONGEST_SONG, clip_hash, group_hashes


def groups_of(*members: str, groups: dict[str, str] | None = None, stem: str = "a") -> list[set[str]]:
    """Return the groups of more than one clip."""
    found: dict[int, set[str]] = {}
    hashes = group_hashes(stem, members, [(groups or {}).get(member) for member in members])
    for member, hash_ in zip(members, hashes, strict=True):
        found.setdefault(hash_, set()).add(member)
    return [each for each in found.values() if len(each) > 1]


def test_clips_of_one_song_are_one_group() -> None:
    members = [
        "x/song_000.wav",
        "x/other_000.wav",
        "x/song_001.wav",
        "x/other-001.flac",
        "x/alone.wav",
        "x/song_002.wav",
    ]
    assert groups_of(*members) == [
        {"x/song_000.wav", "x/song_001.wav", "x/song_002.wav"},
        {"x/other_000.wav", "x/other-001.flac"},
    ]


def test_equal_names_in_other_folders_or_archives_are_other_songs() -> None:
    members = ["x/song_0.wav", "x/song_1.wav", "x/b_0.wav", "y/song_0.wav", "y/song_1.wav", "y/b_0.wav"]
    assert groups_of(*members) == [{"x/song_0.wav", "x/song_1.wav"}, {"y/song_0.wav", "y/song_1.wav"}]
    first, second = (group_hashes(stem, members, [None] * 6) for stem in "ab")
    assert not set(first) & set(second)


def test_a_song_may_lack_rejected_clips() -> None:
    assert groups_of("song_3.wav", "song_4.wav", "song_6.wav", "b_1.wav") == [
        {"song_3.wav", "song_4.wav", "song_6.wav"}
    ]


def test_numbers_of_songs_are_not_taken_for_numbers_of_clips() -> None:
    assert groups_of(*(f"track_{number:02}.wav" for number in range(20))) == []  # the only name in its folder
    many = [f"song_{number:03}.wav" for number in range(LONGEST_SONG + 1)]
    assert groups_of(*many, "b_0.wav") == []
    by_style = ["lofi_000.wav", "techno_001.wav", "folk_002.wav", "lofi_003.wav", "techno_004.wav", "folk_005.wav"]
    assert groups_of(*by_style) == []
    assert groups_of("000.wav", "001.wav", "02 - x.wav", "03 - x.wav") == []


def test_one_sound_in_several_formats_is_one_group() -> None:
    members = ["x/a.wav", "x/b.mp3", "x/a.FLAC", "y/a.wav", "b.ogg", "b.v2", "b.v3"]
    assert groups_of(*members) == [{"x/a.wav", "x/a.FLAC"}]
    alone = group_hashes("a", ["x/b.wav", "x/b.WAV", "b.v2"], [None] * 3)
    assert alone == [clip_hash("a", "x/b.wav"), clip_hash("a", "x/b.WAV"), clip_hash("a", "b.v2")]


def test_the_longest_names_of_a_zip_take_no_time() -> None:
    names = [f"{'x1-' * 21_000}{number:03}.wav" for number in range(3)] + ["-" * 65_000 + "x.wav", "b_1.wav"]
    assert groups_of(*names) == [set(names[:3])]


def test_a_group_in_the_metadata_comes_before_names_and_spans_archives() -> None:
    members = ["song_0.wav", "song_1.wav", "b_0.wav", "b_1.wav"]
    named = {"song_0.wav": "live", "b_0.wav": "live"}
    assert groups_of(*members, groups=named) == [{"song_0.wav", "b_0.wav"}]
    assert group_hashes("a", ["x.wav"], ["live"]) == group_hashes("b", ["y.wav"], ["live"])


def test_other_clips_are_split_as_before_groups_existed() -> None:
    assert group_hashes("a", ["x.wav", "y/z.wav"], [None, None]) == [clip_hash("a", "x.wav"), clip_hash("a", "y/z.wav")]


@given(
    clips=st.dictionaries(st.integers(0, 10_000), st.integers(0, 12), min_size=1, max_size=60),
    added=st.dictionaries(st.integers(0, 10_000), st.integers(0, 12), max_size=60),
    fraction=st.sampled_from([0.05, 0.3, 0.9]),
)
def test_no_group_is_on_both_sides_of_the_split(clips: dict[int, int], added: dict[int, int], fraction: float) -> None:
    def held_out(*archives: dict[int, int]) -> dict[int, bool]:
        """Return for each group whether it is held out."""
        members = [
            (stem, clip, group)
            for stem, archive in zip("ab", archives, strict=False)
            for clip, group in archive.items()
        ]
        keys = np.array([group_hashes(stem, [f"{clip}"], [f"{group}"])[0] for stem, clip, group in members], np.uint64)
        training, validation = split(keys, fraction)
        sides = {members[index][2]: False for index in training} | {members[index][2]: True for index in validation}
        assert {members[index][2] for index in training}.isdisjoint(members[index][2] for index in validation)
        return sides

    before, after = held_out(clips), held_out(clips, added)
    moved = [group for group in before if before[group] != after[group]]
    assert len(moved) <= 2  # one of each side may have had to fill it

"""Near duplicates are found by their codes, whatever else is among the clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from musicgen_core import storage
from musicgen_core.data import near_duplicates
from musicgen_core.data.duplicate_clips import near_duplicates_in
from musicgen_core.data.near_duplicates import first_of_each, joined_keys, originals_of, signature
from musicgen_core.data.shards import Row
from tests.fixture_types import WriteShard

CODEC = "sha256:codec"
Codes = NDArray[np.uint16]


def music(seed: int, frames: int = 500) -> Codes:
    return np.random.default_rng(seed).integers(2048, size=(4, frames), dtype=np.uint16)


def changed(codes: Codes, share: float, seed: int = 0) -> Codes:
    """Return codes of which a share of the frames has others."""
    rng = np.random.default_rng([seed, 1])
    other = rng.integers(2048, size=codes.shape, dtype=np.uint16)
    return np.where(rng.random(codes.shape[1]) < share, other, codes)


def firsts_of(clips: Sequence[Codes]) -> list[int]:
    return first_of_each(np.stack([signature(codes) for codes in clips])).tolist()


def test_a_clip_that_is_cut_later_is_a_near_duplicate() -> None:
    song = music(0, 600)
    assert firsts_of([music(1), song[:, :500], music(2), song[:, 15:515]]) == [0, 1, 2, 1]


def test_clips_whose_codes_differ_in_a_few_frames_are_near_duplicates() -> None:
    songs = [music(seed) for seed in range(200)]
    found = firsts_of([*songs, *(changed(song, 0.1, seed) for seed, song in enumerate(songs))])
    assert found == [*range(200), *range(200)]


def test_clips_of_which_half_the_frames_differ_are_no_duplicates() -> None:
    assert firsts_of([music(0), changed(music(0), 0.5)]) == [0, 1]


def test_clips_are_in_the_cluster_of_their_neighbours_duplicates() -> None:
    song = music(0, 1000)
    parts = [song[:, start : start + 500] for start in range(0, 501, 125)]
    assert firsts_of([parts[0], parts[-1]]) == [0, 1]
    assert firsts_of(parts) == [0, 0, 0, 0, 0]


def test_clips_with_hardly_any_distinct_codes_have_no_duplicates() -> None:
    silence, drone = np.zeros((4, 500), np.uint16), np.tile(music(0, 7), 70)
    short = music(1, 64)
    assert firsts_of([silence, drone, silence, short, drone, short, music(2), music(2)]) == [0, 1, 2, 3, 4, 5, 6, 6]
    assert firsts_of([music(1, 65), music(1, 65)]) == [0, 0]


def test_thousands_of_copies_are_one_cluster() -> None:
    signatures = np.stack([signature(music(seed)) for seed in range(2)])
    assert first_of_each(signatures.repeat(5000, axis=0)).tolist() == [0] * 5000 + [5000] * 5000


def test_many_versions_of_a_loop_are_one_cluster() -> None:
    loop = music(0)
    assert set(firsts_of([changed(loop, 0.1, seed) for seed in range(300)])) == {0}


def test_appended_clips_leave_the_clusters_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_NEIGHBOURS", 2)
    clips = [changed(music(seed % 20), 0.03, seed) for seed in range(60)]
    more = [changed(music(seed % 30), 0.03, seed + 1000) for seed in range(60)]
    assert firsts_of([*clips, *more])[:60] == firsts_of(clips) == [*range(20)] * 3


def test_no_clips_have_no_clusters() -> None:
    assert first_of_each(np.zeros((0, near_duplicates.PERMUTATIONS), np.uint16)).tolist() == []
    assert first_of_each(np.zeros((3, near_duplicates.PERMUTATIONS), np.uint16)).tolist() == [0, 1, 2]


def test_what_stays_is_no_near_duplicate_of_what_else_stays() -> None:
    song = music(0, 1000)
    parts = [song[:, start : start + 500] for start in range(0, 501, 125)]
    signatures = np.stack([signature(codes) for codes in [*parts, parts[0], music(1)]])
    originals = originals_of(signatures, first_of_each(signatures))
    assert originals.tolist() == [0, 0, 2, 2, 4, 0, 6]
    kept = np.unique(originals)
    assert originals_of(signatures[kept], first_of_each(signatures[kept])).tolist() == list(range(len(kept)))


def test_groups_are_joined_by_near_duplicates_under_the_first_key() -> None:
    keys = np.array([50, 50, 40, 40, 30, 20, 10], np.uint64)
    firsts = np.array([0, 1, 2, 1, 4, 4, 6])  # a clip of the second group is a near duplicate of one of the first
    assert joined_keys(keys, firsts).tolist() == [50, 50, 50, 50, 30, 30, 10]
    assert joined_keys(keys, np.arange(7)).tolist() == keys.tolist()


def test_near_duplicates_of_a_directory_are_named_across_archives(tmp_path: Path, write_shard: WriteShard) -> None:
    tokens = storage.as_path(tmp_path / "tokens")

    def rows(*songs: int) -> list[Row]:
        return [Row(f"{number}.wav", None, 10.0, music(song)) for number, song in enumerate(songs)]

    write_shard(tokens, "b", rows(5, 1, 6))
    write_shard(tokens, "a", rows(1, 2, 3, 2))
    write_shard(tokens, "c", rows(9))
    found = near_duplicates_in(tokens, CODEC, tmp_path / "cache")
    assert [list(map(str, cluster)) for cluster in found] == [["a: 0.wav", "b: 1.wav"], ["a: 1.wav", "a: 3.wav"]]

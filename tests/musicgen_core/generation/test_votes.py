from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from upath import UPath

from musicgen_core.errors import ConfigError
from musicgen_core.generation.votes import PairTally, Vote, append_vote, read_votes, tally, votes_in

JAZZ = {"path": "/runs/jazz/lora_weights/best_lora.pt", "sha256": "ab" * 32}


def vote_of(vote: str = "a", a: Any = (), b: Any = (JAZZ,), **more: Any) -> Vote:
    return Vote.model_validate(
        {"a": {"file": "a.wav", "adapter": a}, "b": {"file": "b.wav", "adapter": b}, "vote": vote, **more}
    )


votes = st.builds(
    lambda vote, strength, prompt, seed: vote_of(vote, b=[JAZZ | {"strength": strength}], prompt=prompt, seed=seed),
    st.sampled_from(["a", "b", "none"]),
    st.floats(0.1, 2),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.integers(0, 2**32 - 1),
)


@given(written=st.lists(votes, max_size=6), torn=st.integers(1, 200))
def test_every_complete_vote_is_read_also_behind_a_torn_line(
    tmp_path_factory: pytest.TempPathFactory, written: list[Vote], torn: int
) -> None:
    path = tmp_path_factory.mktemp("votes") / "votes.jsonl"
    lost = vote_of(prompt="of a process that was killed").model_dump_json().encode()
    path.write_bytes(lost[: min(torn, len(lost) - 1)])
    for vote in written:
        append_vote(path, vote)
    assert read_votes(UPath(path)) == (written, 1)


def test_votes_appended_at_once_are_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    all_votes = [vote_of(prompt="x" * 4000, seed=number) for number in range(64)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda vote: append_vote(path, vote), all_votes))
    found, unreadable = read_votes(UPath(path))
    assert unreadable == 0 and sorted(vote.seed or 0 for vote in found) == list(range(64))


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "votes.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        append_vote(tmp_path / "votes.jsonl", vote_of())
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"vote": "c"},
        {"a": {"file": "b.wav"}},
        {"b": {"file": "b.wav", "adapter": []}},
        {"prompt": "x" * 5000},
        {"order_seed": -1},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_no_vote_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Vote.model_validate(json.loads(vote_of().model_dump_json()) | change)


@given(first=st.integers(0, 300), second=st.integers(0, 300))
def test_the_interval_is_wilsons_and_decides_what_is_said(first: int, second: int) -> None:
    pair = PairTally("", "jazz", first, second)
    low, high = pair.interval
    assert 0 <= low <= high <= 1
    count, z = first + second, 1.959963984540054
    if count:
        share = second / count
        middle = (share + z * z / 2 / count) / (1 + z * z / count)
        half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / 4 / count**2)
        assert (low, high) == pytest.approx((max(0, middle - half), min(1, middle + half)), abs=1e-9)
        assert low <= share + 1e-12 and share - 1e-12 <= high
    expected = (
        "no preference yet" if low <= 0.5 <= high else f"{'jazz' if second > first else 'base model'} is preferred"
    )
    assert expected in pair.sentence()


def test_votes_count_for_the_adapter_whatever_the_order_and_ties_apart() -> None:
    given_votes = [vote_of("b")] * 9 + [vote_of("a", a=(JAZZ,), b=())] * 3 + [vote_of("a")] + [vote_of("none")] * 2
    (pair,) = tally(given_votes)
    assert (pair.for_first, pair.for_second, pair.ties) == (1, 12, 2)
    assert pair.preferred == "jazz/best_lora.pt 1" and pair.share == 12 / 13
    assert pair.counts() == (
        "1 : 12, 2 without a difference; jazz/best_lora.pt 1 in 92% of decided votes (95 % interval 67% to 99%)"
    )


def test_strength_0_is_the_base_model() -> None:
    off = vote_of("a", a=[JAZZ | {"strength": 0}])
    assert len(tally([off, vote_of("a")])) == 1


def test_ties_alone_have_no_share() -> None:
    (pair,) = tally([vote_of("none")])
    assert pair.share is None and pair.interval == (0, 1) and "no preference yet" in pair.sentence()


def test_adapters_with_equal_names_are_told_apart() -> None:
    other = JAZZ | {"sha256": "cd" * 32}
    pairs = tally([vote_of("a"), vote_of("a", b=[other])])
    assert len({pair.second for pair in pairs}) == 2


def test_places_are_folders_and_files_and_a_saved_copy_counts_once(tmp_path: Path) -> None:
    folder, saved = tmp_path / "music", tmp_path / "saved.jsonl"
    append_vote(folder / "votes.jsonl", vote_of(time="2026-12-01T12:00:00Z"))
    saved.write_text((folder / "votes.jsonl").read_text())
    append_vote(saved, vote_of(time="2026-12-01T12:01:00Z"))
    found, unreadable = votes_in([str(folder), str(saved)])
    assert len(found) == 2 and unreadable == 0


def test_a_place_without_votes_is_named(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    with pytest.raises(ConfigError, match=r"there are no votes at .*/music/votes\.jsonl"):
        votes_in([str(tmp_path / "music")])

"""The clips that an adapter was trained on, from the settings of its runs and the hashes of clips."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from musicgen_core.data.dataset import Clips, split
from musicgen_core.data.levels import LAGS
from musicgen_core.data.near_duplicates import PERMUTATIONS
from musicgen_core.run_layout import RunConfig, load_config
from musicgen_core.storage import as_path
from musicgen_core.training.files.resuming import learned_from, lineage_of

HASHES = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8, unique=True)


class Shard(SimpleNamespace):
    hashes: Any
    groups: Any
    signatures: Any
    profiles: Any

    def __len__(self) -> int:
        return len(self.hashes)


def clips_of(archives: dict[str, list[int]]) -> Clips:
    shards: Any = [
        Shard(hashes=np.array(hashes, dtype=np.uint64), frames=np.ones(len(hashes), dtype=np.int32))
        for hashes in archives.values()
    ]
    return Clips(shards, {stem: f"codes-{stem} texts" for stem in archives}, [])


def trained_on(clips: Clips, fraction: float, **more: Any) -> RunConfig:
    return RunConfig({"shards": dict(clips.fingerprints), "validation_fraction": fraction, "lora_r": 8, **more})


def test_near_duplicates_of_what_was_learned_are_learned_too() -> None:
    songs = np.random.default_rng(0).integers(1, 2**16, size=(6, PERMUTATIONS), dtype=np.uint16)
    then = clips_of({"b": [2**60, 2**63 + 1, 2**63 + 2]})
    now = clips_of({"a": [2**61, 2**62], "b": [2**60, 2**63 + 1, 2**63 + 2]})
    for shards, of_songs in ((then.shards, [[0, 1, 2]]), (now.shards, [[1, 3], [0, 1, 2]])):
        for shard, numbers in zip(shards, of_songs, strict=True):
            shard.groups, shard.signatures = shard.hashes, songs[numbers]  # type: ignore[misc]
            shard.profiles = np.zeros((len(numbers), LAGS), np.int8)  # type: ignore[misc]
    config = trained_on(then, 0.3, split_by="near_duplicates")
    assert learned_from(then, [config]).tolist() == [False, True, True]
    assert learned_from(now, [config]).tolist() == [True, False, False, True, True]


@given(st.lists(HASHES, min_size=1, max_size=3), st.lists(HASHES, max_size=2), st.sampled_from([0, 0.05, 0.3, 0.9]))
def test_learned_from_is_the_trainings_own_side(then: list[list[int]], later: list[list[int]], fraction: float) -> None:
    """Also where archives came later, of which it has seen nothing."""
    known = {f"then_{i}": hashes for i, hashes in enumerate(then)}
    clips = clips_of(known)
    config = trained_on(clips, fraction)
    training, _ = split(clips.hashes, fraction)
    assert learned_from(clips, [config]).nonzero()[0].tolist() == training.tolist()
    now = clips_of(known | {f"{i}_later": hashes for i, hashes in enumerate(later)})
    assert learned_from(now, [config]).nonzero()[0].tolist() == training.tolist()


@given(st.lists(HASHES, min_size=2, max_size=3), st.sampled_from([0, 0.05, 0.3, 0.9]))
def test_of_a_part_of_the_archives_nothing_seen_is_missed(archives: list[list[int]], fraction: float) -> None:
    then = clips_of({str(i): hashes for i, hashes in enumerate(archives)})
    training, _ = split(then.hashes, fraction)
    part = clips_of({str(i): hashes for i, hashes in enumerate(archives[:-1])})
    seen = learned_from(part, [trained_on(then, fraction)]).nonzero()[0]
    assert {index for index in training.tolist() if index < len(part)} <= set(seen.tolist()) | _moved(part, then)


def _moved(part: Clips, then: Clips) -> set[int]:
    """The clips of the group that `split` gave to training because all others were held out."""
    return set(np.flatnonzero(then.hashes == then.hashes.max()).tolist())


def test_a_renamed_archive_counts_as_seen() -> None:
    then = clips_of({"a": [1, 2**63]})
    now = Clips(clips_of({"b": [3, 2**62]}).shards, {"b": "codes-a other"}, [])
    assert learned_from(now, [trained_on(then, 0.5)]).all()
    assert not learned_from(clips_of({"c": [3]}), [trained_on(then, 0.5)]).any()


def test_an_archive_trained_on_under_two_names_counts_as_seen() -> None:
    archives = {"a": [1, 2**63], "b": [3, 2**62]}
    twice = trained_on(Clips(clips_of(archives).shards, {"a": "codes-a texts", "a (1)": "codes-a texts"}, []), 0.5)
    now = clips_of(archives)
    assert learned_from(now, [twice]).tolist() == [True, True, False, False]


def test_trainings_are_followed_to_the_first(tmp_path: Path) -> None:
    clips = clips_of({"a": [1]})
    for name, before in (("first", None), ("second", tmp_path / "first"), ("third", "lora_weights/x.pt")):
        (tmp_path / name).mkdir()
        init = tmp_path / "second" / before if name == "third" else before
        config = trained_on(clips, 0.1, init_adapter=str(init) if init else None, name=name)
        (tmp_path / name / "config.json").write_text(json.dumps(config.values))
    found = lineage_of(load_config(as_path(tmp_path / "third")))
    assert [config.values["name"] for config in found.configs] == ["third", "second", "first"] and found.unknown is None
    resumed = trained_on(
        clips, 0.1, origin={"checkpoint": str(tmp_path / "third" / "checkpoint_step_4.pt")}, name="4th"
    )
    assert len(lineage_of(resumed).configs) == 4
    assert lineage_of(trained_on(clips, 0.1, init_adapter="USER/NAME")).unknown == "USER/NAME"

"""Counting and sampling clips without staging the archives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import find_archives, open_archive
from musicgen_core.data.archive_sample import ArchiveSample, Listed, evenly, list_archives, take_samples, total_clips
from musicgen_core.errors import ArchiveError
from tests.fixture_types import Pack

KINDS = ["zip", "tar", "tar.gz", "tar.xz", "tar.zst"]
CLIP_BYTES = 200_000


def clips(count: int, size: int = 100) -> list[tuple[str, bytes]]:
    """Return members of noise, which doesn't compress, and texts between them."""
    return [
        member
        for number in range(count)
        for member in ((f"{number:02}.wav", random.Random(number).randbytes(size)), (f"{number:02}.txt", b"a text"))
    ]


@pytest.fixture(params=["local", "remote"])
def place(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path / "archives") if request.param == "local" else bucket


@pytest.fixture
def put(place: UPath, tmp_path: Path, pack: Pack) -> Callable[..., None]:
    """Pack an archive and put it at `place`."""

    def do(name: str, members: Sequence[tuple[str, bytes]], kind: str = "zip") -> None:
        storage.upload(pack(tmp_path / "packed", members, kind), place / name)

    return do


def samples_of(place: UPath, wanted: int, folder: Path) -> tuple[list[Listed], list[ArchiveSample]]:
    listed, unreadable = list_archives(find_archives(place))
    assert not unreadable
    folder.mkdir(exist_ok=True)
    return listed, take_samples(listed, wanted, folder, workers=2)


def contents(sample: ArchiveSample) -> list[tuple[str, bytes]]:
    found = []
    with open_archive(sample.path) as opened:
        for member in sample.members(opened):
            with member.open() as file:
                found.append((member.name, file.read()))
    return found


# Counting


def test_clips_of_zips_are_counted_and_those_of_tars_are_not(place: UPath, put: Callable[..., None]) -> None:
    for number, kind in enumerate(KINDS):
        put(f"{number}.zip", clips(number + 1), kind)
    listed, unreadable = list_archives(find_archives(place))
    assert [entry.clips for entry in listed] == [1, None, None, None, None]
    assert [entry.archive_bytes for entry in listed] == [entry.archive.stat().st_size for entry in listed]
    assert unreadable == []


def test_an_unreadable_archive_is_reported_with_its_reason(place: UPath, put: Callable[..., None]) -> None:
    put("a.zip", clips(3))
    (place / "broken.zip").write_bytes(b"PK, and no more of a zip")
    listed, (reason,) = list_archives(find_archives(place))
    assert [entry.clips for entry in listed] == [3]
    assert "broken.zip can't be read" in reason
    _, (_, gone) = list_archives([*find_archives(place), place / "gone.zip"])
    assert "gone.zip can't be opened" in gone
    with pytest.raises(ArchiveError, match=r"broken\.zip can't be read .* nor can the other 1"):
        list_archives([place / "broken.zip", place / "gone.zip"])


# Choosing


@given(st.integers(0, 3000), st.integers(1, 300))
@settings(max_examples=200, deadline=None)
def test_places_are_spread_from_the_first_to_the_last(count: int, wanted: int) -> None:
    places = evenly(count, wanted)
    assert len(places) == min(count, wanted)
    assert all(0 <= place < count for place in places)
    gaps = {after - before for before, after in pairwise(places)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)
    if min(count, wanted) > 1:
        assert (places[0], places[-1]) == (0, count - 1)


def test_sampled_archives_and_clips_are_evenly_spread(place: UPath, put: Callable[..., None], tmp_path: Path) -> None:
    for number in range(7):
        put(f"{number}.zip", clips(9))
    _, samples = samples_of(place, 12, tmp_path / "copies")
    assert [sample.listed.archive.name for sample in samples] == ["0.zip", "2.zip", "4.zip", "6.zip"]
    assert [list(sample.places) for sample in samples] == [[0, 4, 8]] * 4


def test_the_share_of_a_small_archive_goes_to_the_others(
    place: UPath, put: Callable[..., None], tmp_path: Path
) -> None:
    for number, count in enumerate([10, 1, 10, 0, 2]):
        put(f"{number}.zip", clips(count))
    _, samples = samples_of(place, 15, tmp_path / "copies")
    assert [len(sample.places) for sample in samples] == [6, 1, 6, 2]
    _, samples = samples_of(place, 2, tmp_path / "copies")
    assert [(sample.listed.archive.name, list(sample.places)) for sample in samples] == [("0.zip", [0]), ("4.zip", [0])]
    _, samples = samples_of(place, 100, tmp_path / "copies")
    assert [len(sample.places) for sample in samples] == [10, 1, 10, 2]


def test_archives_without_clips_are_an_error(place: UPath, put: Callable[..., None], tmp_path: Path) -> None:
    put("a.zip", [("cover.jpg", b"none")])
    put("b.tar", [("cover.jpg", b"none")], "tar")
    with pytest.raises(ArchiveError, match=r"no clips.* end in \.wav, \.flac, "):
        samples_of(place, 10, tmp_path / "copies")


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_every_format_are_sampled(place: UPath, put: Callable[..., None], tmp_path: Path, kind: str) -> None:
    members = [("a.wav", b"a"), ("a.txt", b"text"), ("b.flac", b"b"), ("c.OPUS", b"c"), ("d.aif", b"d")]
    put("a.zip", members, kind)
    _, (sample,) = samples_of(place, 10, tmp_path / "copies")
    assert contents(sample) == [member for member in members if member[0] != "a.txt"]


# Taking


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_opens_as_it_does_in_its_archive(
    place: UPath, put: Callable[..., None], tmp_path: Path, kind: str
) -> None:
    members = clips(9)
    put("a.zip", members, kind)
    _, (sample,) = samples_of(place, 3, tmp_path / "copies")
    wavs = [member for member in members if member[0].endswith(".wav")]
    assert list(sample.places) == ([0, 4, 8] if kind == "zip" else [0, 1, 2])
    for _ in range(2):
        assert contents(sample) == [wavs[place] for place in sample.places]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_only_the_sampled_bytes_of_a_remote_archive_are_fetched(
    bucket: UPath, tmp_path: Path, pack: Pack, kind: str
) -> None:
    storage.upload(pack(tmp_path / "packed", clips(20, CLIP_BYTES), kind), bucket / "a.zip")
    (listed,), (sample,) = samples_of(bucket, 3, tmp_path / "copies")
    assert sample.path.stat().st_size == listed.archive_bytes
    assert sample.path.stat().st_blocks * 512 < 6 * CLIP_BYTES  # of 20
    assert len(contents(sample)) == 3


def test_local_archives_are_read_where_they_are(tmp_path: Path, pack: Pack) -> None:
    for kind in ("zip", "tar"):
        pack(tmp_path / f"{kind}.{kind}", clips(3), kind)
    _, samples = samples_of(storage.as_path(tmp_path), 4, tmp_path / "copies")
    assert sorted(sample.path.parent for sample in samples) == [tmp_path] * 2
    assert not list((tmp_path / "copies").iterdir())


def test_a_rejected_clip_of_a_remote_zip_stays_in_the_sample(bucket: UPath, tmp_path: Path, pack: Pack) -> None:
    path = pack(tmp_path / "packed", [("a.wav", b"content" * 100), ("b.wav", b"other" * 100)])
    path.write_bytes(path.read_bytes().replace(b"contentcontent", b"contentCONTENT", 1))
    storage.upload(path, bucket / "a.zip")
    _, (sample,) = samples_of(bucket, 2, tmp_path / "copies")
    assert list(sample.places) == [0, 1]


def test_a_tar_truncated_within_the_sample_is_named_in_the_error(
    place: UPath, put: Callable[..., None], tmp_path: Path
) -> None:
    put("whole.tar", clips(4, CLIP_BYTES), "tar")
    (place / "broken.tar").write_bytes((place / "whole.tar").read_bytes()[: 3 * CLIP_BYTES])
    with pytest.raises(ArchiveError, match=r"broken\.tar"):
        samples_of(place, 8, tmp_path / "copies")


# Totals


def test_zips_and_tars_read_to_their_end_give_exact_totals(
    place: UPath, put: Callable[..., None], tmp_path: Path
) -> None:
    for number, kind in enumerate(["zip", "tar", "tar.gz", "zip"]):
        put(f"{number}.zip", clips(3 + number), kind)
    put("9.zip", clips(2))
    listed, samples = samples_of(place, 40, tmp_path / "copies")
    assert len(samples) == 4
    assert total_clips([entry for entry in listed if entry.archive.name != "9.zip"], samples) == (18, True)


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_clips_of_tars_are_estimated_from_those_sampled(
    place: UPath, put: Callable[..., None], tmp_path: Path, kind: str
) -> None:
    counts = [20, 30, 10, 30, 20, 40]
    for number, count in enumerate(counts):
        put(f"{number}.tar", clips(count, 50_000), kind)
    put("7.zip", clips(5))
    listed, samples = samples_of(place, 32, tmp_path / "copies")
    total, exact = total_clips(listed, samples)
    assert not exact
    assert total == pytest.approx(sum(counts) + 5, rel=0.25)  # the 64 KiB that are read ahead are more than a clip


def test_clips_of_unsampled_tars_are_estimated_from_zips(
    place: UPath, put: Callable[..., None], tmp_path: Path
) -> None:
    for number, kind in enumerate(["zip", "tar", "zip", "zip", "zip"]):
        put(f"{number}.zip", clips(10, 50_000), kind)
    listed, samples = samples_of(place, 4, tmp_path / "copies")
    total, exact = total_clips(listed, [sample for sample in samples if sample.listed.clips is not None])
    assert (total, exact) == (pytest.approx(50, abs=1), False)

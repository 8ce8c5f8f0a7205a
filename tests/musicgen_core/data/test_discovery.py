from __future__ import annotations

import re
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import archive_stem, find_archives, passed_over
from musicgen_core.errors import ArchiveError


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path) if request.param == "local" else bucket


def names_found(location: UPath | str) -> list[str]:
    return [path.name for path in find_archives(location)]


def touch(folder: UPath, *names: str) -> None:
    for name in names:
        storage.write_text(folder / name, "")


def test_a_directory_gives_only_its_archives_in_natural_order(folder: UPath) -> None:
    archives = ["b_1.zip", "b_2.ZIP", "b_3.tgz", "b_10.tar.gz", "b_11.tar", "b_12.tar.zst", "b_100.txz"]
    touch(
        folder, *reversed(archives), "metadata.jsonl", "b_4.zip.part", "._b_5.zip", "sub/b_6.zip", "b_7.zip/inside.txt"
    )
    assert names_found(folder) == archives


def test_a_file_is_an_archive_whatever_its_name(folder: UPath) -> None:
    touch(folder, "music [1].bin", "other.zip")
    assert names_found(folder / "music [1].bin") == ["music [1].bin"]


def test_a_glob_gives_the_files_that_it_matches_in_natural_order(folder: UPath) -> None:
    touch(folder, "b_2.zip", "b_10.zip", "c_1.zip", "._b_3.zip", "sub/b_4.zip")
    assert names_found(f"{folder}/b_*.zip") == ["b_2.zip", "b_10.zip"]


@pytest.mark.parametrize("place", ["", "missing.zip", "nothing_*.zip", "missing/folder"])
def test_nothing_found_is_an_error_that_names_the_location(folder: UPath, place: str) -> None:
    touch(folder, "metadata.jsonl")
    with pytest.raises(ArchiveError, match=re.escape(f"no archives found at {folder / place}")) as refused:
        find_archives(str(folder / place))
    assert ".zip" in refused.value.next_step


def test_two_archives_of_one_stem_are_an_error_that_names_both(folder: UPath) -> None:
    touch(folder, "b_1.zip", "b_1.tar.gz", "b_2.zip")
    with pytest.raises(ArchiveError) as refused:
        find_archives(folder)
    assert all(word in refused.value.found for word in ("b_1.zip", "b_1.tar.gz", "the shard b_1"))


def test_ignored_files_are_named_with_advice(folder: UPath) -> None:
    others = ["a.7z", "b.RAR", "c.tar.lz4", "d.part1.rar", "e.zip.001", "f.tbz", "g.tar.Z"]
    touch(
        folder, "x.zip", *others, "y.zip.crdownload", "z.tar.gz.part", "metadata.jsonl", "README.md", "._a.7z", "s.7z/h"
    )
    other_kinds, incomplete = passed_over(folder)
    assert other_kinds.startswith("a.7z, b.RAR, c.tar.lz4, d.part1.rar, e.zip.001 and 2 more not read")
    assert other_kinds.endswith("pack the files as a zip or tar")
    assert incomplete.startswith("y.zip.crdownload, z.tar.gz.part not read") and "download again" in incomplete
    assert names_found(folder) == ["x.zip"] and passed_over(folder / "x.zip") == []


def test_a_directory_without_archives_names_its_content(folder: UPath) -> None:
    touch(folder, "a.7z")
    with pytest.raises(ArchiveError, match=r"no archives found at .*; a\.7z not read, as only zips and tars are"):
        find_archives(folder)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("archive_batch_0007.zip", "archive_batch_0007"),
        ("a.b.TAR.GZ", "a.b"),
        ("a.tar.zip", "a.tar"),
        ("plain", "plain"),
    ],
)
def test_the_stem_is_the_name_without_the_archive_suffix(name: str, stem: str) -> None:
    assert archive_stem(storage.as_path(f"memory://somewhere/{name}")) == stem


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_set_of_names_has_one_natural_order(data: st.DataObject) -> None:
    names = data.draw(st.sets(st.text("ab019_²٣", max_size=6), min_size=2, max_size=8))
    orders = []
    for _ in range(2):
        folder = storage.as_path(f"memory://{uuid.uuid4().hex}")
        touch(folder, *data.draw(st.permutations([f"x{name}.zip" for name in names])))
        orders.append(names_found(folder))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(f"x{name}.zip" for name in names)
    numbers = [int(name[1:-4]) for name in orders[0] if re.fullmatch(r"x[0-9]+\.zip", name)]
    assert numbers == sorted(numbers)

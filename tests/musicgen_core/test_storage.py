from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.errors import ConfigError


class Interrupted(Exception):
    pass


def publish_half(target: UPath) -> None:
    with storage.publish(target) as path:
        path.write_text("half a n")
        raise Interrupted


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path) if request.param == "local" else bucket


def names_in(folder: UPath) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Paths


def test_a_local_path_is_what_it_was_in_every_way_of_writing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in (f"{tmp_path}/a b#1?.zip", tmp_path / "a b#1?.zip", "~/a b#1?.zip", f"file://{tmp_path}/a b#1?.zip"):
        assert str(storage.as_path(written)) == f"{tmp_path}/a b#1?.zip"
        assert storage.is_local(storage.as_path(written))


def test_a_path_taken_for_a_path_again_stays_the_same(folder: UPath) -> None:
    assert str(storage.as_path(folder)) == str(storage.as_path(str(folder))) == str(folder)
    assert storage.is_local(storage.as_path(folder)) == storage.is_local(folder)


def test_a_url_of_an_unknown_kind_is_named() -> None:
    with pytest.raises(ConfigError, match="floppy://a/b") as refused:
        storage.as_path("floppy://a/b")
    assert "gs://" in refused.value.next_step


# Publishing


@pytest.mark.parametrize("name", ["x.txt", "a b.txt", "a?b#c%20.txt", "音楽.txt", "a*[1].txt", "noend"])
def test_published_content_reads_back(folder: UPath, name: str) -> None:
    storage.write_text(folder / "sub" / name, "früh\n")
    assert storage.as_path(str(folder / "sub" / name)).read_bytes() == "früh\n".encode()
    assert names_in(folder / "sub") == [name]


def test_publishing_replaces_the_old_file(folder: UPath) -> None:
    storage.write_text(folder / "x", "a longer old text")
    storage.write_text(folder / "x", "new")
    assert (folder / "x").read_text() == "new"
    assert names_in(folder) == ["x"]


def test_a_failed_publication_leaves_only_the_old_file(folder: UPath) -> None:
    storage.write_text(folder / "x", "old")
    with pytest.raises(Interrupted):
        publish_half(folder / "x")
    assert (folder / "x").read_text() == "old"
    assert names_in(folder) == ["x"]


def test_a_failed_first_publication_leaves_no_file(folder: UPath) -> None:
    storage.write_text(folder / "other", "")
    with pytest.raises(Interrupted):
        publish_half(folder / "x")
    assert names_in(folder) == ["other"]


def test_nothing_shows_under_the_name_before_the_block_ends(folder: UPath) -> None:
    with storage.publish(folder / "x") as path:
        path.write_text("all of it")
        assert not (folder / "x").exists()
    assert (folder / "x").read_text() == "all of it"


def test_of_publications_at_the_same_time_one_remains_whole(folder: UPath) -> None:
    texts = [str(number) * 200_000 for number in range(6)]
    barrier = threading.Barrier(len(texts))

    def publish(text: str) -> None:
        with storage.publish(folder / "x") as path:
            path.write_text(text)
            barrier.wait()

    threads = [threading.Thread(target=publish, args=[text]) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (folder / "x").read_text() in texts
    assert names_in(folder) == ["x"]


def test_who_reads_the_old_file_reads_it_to_its_end(tmp_path: Path) -> None:
    target = storage.as_path(tmp_path / "x")
    storage.write_text(target, "old" * 100_000)
    with target.open() as reader:
        assert reader.read(3) == "old"
        storage.write_text(target, "new")
        assert reader.read() == "old" * 99_999


def test_a_moved_file_is_only_at_its_new_location(folder: UPath) -> None:
    storage.write_text(folder / "x", "text")
    storage.move(folder / "x", folder / "superseded" / "x")
    assert names_in(folder) == ["superseded"]
    assert (folder / "superseded" / "x").read_text() == "text"


def test_a_tree_is_uploaded_with_its_folders(folder: UPath, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("a", "sub/b", "sub/deeper/c d"):
        storage.write_text(storage.as_path(source / name), name)
    storage.upload_tree(source, folder / "copy")
    for name in ("a", "sub/b", "sub/deeper/c d"):
        assert (folder / "copy" / name).read_text() == name


def test_unchanged_files_are_not_uploaded_again(folder: UPath, tmp_path: Path) -> None:
    source, uploaded = tmp_path / "source", dict[Path, storage.Version]()
    for name in ("same", "grows"):
        storage.write_text(storage.as_path(source / name), name)
    storage.upload_tree(source, folder / "copy", uploaded)
    (folder / "copy" / "same").write_text("would be written over")
    (source / "grows").write_text("has grown")
    storage.upload_tree(source, folder / "copy", uploaded)
    assert (folder / "copy" / "same").read_text() == "would be written over"
    assert (folder / "copy" / "grows").read_text() == "has grown"


def test_a_file_that_vanishes_during_an_upload_is_skipped(
    folder: UPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = storage.upload

    def upload(local: Path, target: UPath) -> None:
        if local.name == "b":
            local.unlink()
        whole(local, target)

    monkeypatch.setattr(storage, "upload", upload)
    for name in ("a", "b", "c"):
        storage.write_text(storage.as_path(tmp_path / "source" / name), name)
    storage.upload_tree(tmp_path / "source", folder / "copy")
    assert names_in(folder / "copy") == ["a", "c"]


# Staging


def test_a_local_file_is_staged_as_itself(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("here")
    with storage.staged(storage.as_path(tmp_path / "x")) as local:
        assert local == tmp_path / "x"
    assert (tmp_path / "x").read_text() == "here"


def test_a_staged_file_has_its_name_and_is_deleted_afterwards(bucket: UPath) -> None:
    storage.write_text(bucket / "archive 7?.zip", "there")
    with storage.staged(bucket / "archive 7?.zip") as local:
        assert (local.name, local.read_text()) == ("archive 7?.zip", "there")
    assert not local.parent.exists()
    assert (bucket / "archive 7?.zip").read_text() == "there"


# Listing


@pytest.mark.parametrize("form", ["relative", "dotted", "absolute", "file URL", "remote"])
def test_a_pattern_names_files_in_order(
    form: str, tmp_path: Path, bucket: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = bucket if form == "remote" else storage.as_path(tmp_path)
    for name in ("in/b_2.zip", "in/b_1.zip", "in/b_10.tar", "in/c_1.zip", "out/b_3.zip", "in/b_4.zip/inner"):
        storage.write_text(place / name, name)
    prefix = {"relative": "", "dotted": "./", "file URL": f"file://{tmp_path}/"}.get(form, f"{place}/")
    found = storage.glob(f"{prefix}in/b_*.zip")
    assert [path.read_text() for path in found] == ["in/b_1.zip", "in/b_2.zip"]
    assert storage.glob(f"{prefix}in/d_*.zip") == []


def test_a_pattern_that_is_not_valid_is_named(folder: UPath) -> None:
    with pytest.raises(ConfigError, match=r"\*\*\.zip"):
        storage.glob(f"{folder}/**.zip")


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_file_name_survives_being_written_as_a_url(name: str) -> None:
    if name not in (".", ".."):
        path = storage.as_path(f"memory://bucket/{name}")
        assert path.name == name
        assert storage.as_path(str(path)).path == path.path


def test_scratch_folders_are_deleted_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = "import os\nfrom musicgen_core import storage\nwith storage.scratch_folder(): os._exit(9)"
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert killed.returncode == 9
    [left] = tmp_path.iterdir()
    with storage.scratch_folder() as first:
        assert not left.exists()
        with storage.scratch_folder() as second:
            assert first.exists() and first != second
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def left_by_killed(tmp_path: Path) -> Path:
    """Return a folder with leftovers of killed processes, a file being written, and files of the user."""
    for name in ("a.wav.12-0123abcd.partial", "in_use.wav.12-0123abcd.partial", "mine.partial", "my.12-xyz.partial"):
        (tmp_path / name).write_bytes(b"half")
    for name in ("export.12-0123abcd.partial", "other.12-0123abcd.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state_dict.bin").write_bytes(b"half")
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    (tmp_path / "young.wav.12-0123abcd.partial").write_bytes(b"half")
    return tmp_path


def test_only_partial_files_of_killed_processes_are_deleted(left_by_killed: Path) -> None:
    before = set(names_in(UPath(left_by_killed)))
    with open(left_by_killed / "in_use.wav.12-0123abcd.partial", "rb") as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        with storage.publish_folder(left_by_killed / "export") as folder:
            assert folder.is_dir() and not (left_by_killed / "export.12-0123abcd.partial").exists()
            (folder / "file").touch()
        storage.delete_partials(UPath(left_by_killed))
    gone = {"export.12-0123abcd.partial", "a.wav.12-0123abcd.partial"}
    assert set(names_in(UPath(left_by_killed))) == before - gone | {"export"}


def test_a_file_being_published_is_not_taken_for_one_left(tmp_path: Path) -> None:
    with storage.publish(UPath(tmp_path / "file")) as path:
        path.write_bytes(b"half")
        os.utime(path, (0, 0))
        storage.delete_partials(UPath(tmp_path))
        assert path.exists()
    assert (tmp_path / "file").read_bytes() == b"half"


def test_a_killed_export_leaves_nothing_behind_the_next_one(tmp_path: Path) -> None:
    """Kills a real process."""
    code = (
        "import os, pathlib, sys\nfrom musicgen_core import storage\n"
        "with storage.publish_folder(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'big').write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False)
    [left] = tmp_path.iterdir()
    os.utime(left, (0, 0))
    with storage.publish_folder(tmp_path / "out") as folder:
        (folder / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

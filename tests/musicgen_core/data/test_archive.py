from __future__ import annotations

import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import clip_names, content_digest, open_archive, without_copies
from musicgen_core.data.members import Sidecar, sidecar_key
from musicgen_core.errors import ArchiveError, ConfigError
from tests.fixture_types import Contents, Pack

KINDS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst"]
CLIPS = [("audio/b.wav", b"beta" * 700), ("audio/a.WAV", b"alpha"), ("deep/er/c.wav", b"")]
FORMATS = ["b.wav", "b.flac", "a.Mp3", "x/d.ogg", "e.OPUS", "b.AIF", "g.aiff", "b.txt.flac"]
OTHERS = [("readme.txt", b"text" * 300), ("audio/wav", b""), ("b.wav.bak", b"old"), ("flac", b""), ("c.m4a", b"other")]


# Reading


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_recognised_by_their_content(
    tmp_path: Path, pack: Pack, contents: Contents, kind: str, name: str
) -> None:
    assert contents(pack(tmp_path / name, CLIPS, kind)) == CLIPS


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_the_wav_members_in_archive_order(tmp_path: Path, pack: Pack, contents: Contents, kind: str) -> None:
    mixed = [OTHERS[0], CLIPS[0], OTHERS[1], CLIPS[1], CLIPS[2], OTHERS[2]]
    path = pack(tmp_path / "a.zip", mixed, kind)
    assert contents(path) == CLIPS
    assert clip_names(storage.as_path(path)) == [name for name, _ in CLIPS]
    with open_archive(path) as archive:
        assert archive.clip_count == (3 if kind == "zip" else None)
        assert [member.size for member in archive.clips()] == [2800, 5, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_every_format_are_in_archive_order(tmp_path: Path, pack: Pack, contents: Contents, kind: str) -> None:
    clips = [(name, name.encode()) for name in FORMATS]
    path = pack(tmp_path / "a.zip", [clips[0], *OTHERS, *clips[1:]], kind)
    assert contents(path) == clips
    assert clip_names(storage.as_path(path)) == FORMATS


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_members_of_one_name_are_each_read(tmp_path: Path, pack: Pack, contents: Contents, kind: str) -> None:
    twins = [("a.wav", b"first"), ("a.wav", b"second")]
    assert contents(pack(tmp_path / "a.zip", twins, kind)) == twins


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_without_clips_has_none(tmp_path: Path, pack: Pack, contents: Contents, kind: str) -> None:
    assert contents(pack(tmp_path / "a", OTHERS, kind)) == []


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_are_given_as_they_are_and_never_followed(
    tmp_path: Path, pack: Pack, contents: Contents, kind: str
) -> None:
    names = ["/etc/a.wav", "../../b.wav", "dir\\c.wav", "C:\\d.wav", "./e.wav", "e\u0301.wav", "é.wav", ".wav"]
    members = [(name, name.encode()) for name in names]
    assert contents(pack(tmp_path / "a", members, kind)) == members


@pytest.mark.parametrize("kind", KINDS)
def test_members_can_be_opened_by_eight_threads_at_once(tmp_path: Path, pack: Pack, kind: str) -> None:
    members = [(f"{i}.wav", bytes([i]) * (i * 5_000 + 1)) for i in range(100)]
    with open_archive(pack(tmp_path / "a", members, kind)) as archive, ThreadPoolExecutor(8) as threads:
        files = list(threads.map(lambda member: member.open(), archive.clips()))
        assert [file.read() for file in files] == [data for _, data in members]
        for file in files:
            file.close()


def open_files(path: Path) -> list[str]:
    """Return the descriptors of this file and of clips, ignoring those of other tests' threads."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found.append(str(entry.readlink()))
    return [name for name in found if name == str(path.resolve()) or "musicgen-clip" in name]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_stopping_at_any_clip_leaks_no_descriptor(tmp_path: Path, pack: Pack, kind: str) -> None:
    path = pack(tmp_path / "a", [(f"{i}.wav", b"a" * 1000) for i in range(50)], kind)
    before = len(open_files(path))
    with open_archive(path) as archive:
        clips = archive.clips()
        for _ in range(5):
            next(clips).open().close()
        next(clips)  # not opened
        assert len(open_files(path)) > before
    del clips
    assert len(open_files(path)) == before


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_macos_metadata_files_are_rejected_with_the_reason(
    tmp_path: Path, pack: Pack, contents: Contents, kind: str
) -> None:
    members = [("a.wav", b"audio"), ("__MACOSX/._a.wav", b"\0\5\x16\7\0\2\0\0Mac OS X"), ("._b.wav", b"audio")]
    good, attributes, also_good = contents(pack(tmp_path / "a", members, kind))
    assert (good, also_good) == (members[0], members[2])
    assert "AppleDouble" in str(attributes[1])


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_encoding_that_is_not_known_is_refused(tmp_path: Path, pack: Pack, kind: str) -> None:
    path = pack(tmp_path / "a", CLIPS, kind)
    with pytest.raises(ConfigError), open_archive(path, name_encoding="klingon"):
        pass
    with pytest.raises(ConfigError):
        clip_names(storage.as_path(path), "klingon")


def test_a_duplicate_archive_is_left_out_and_reported(tmp_path: Path, pack: Pack) -> None:
    first = pack(tmp_path / "x.zip", [("a.wav", b"one")])
    others = [pack(tmp_path / "x (1).zip", [("a.wav", b"one")]), pack(tmp_path / "y.zip", [("a.wav", b"two")])]
    archives = [storage.as_path(path) for path in (others[0], first, others[1])]
    assert without_copies(archives) == (archives[1:], ["x (1).zip is left out: it holds the same as x.zip"])


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_damaged_zip_is_no_copy_of_the_whole_one(tmp_path: Path, pack: Pack, bucket: UPath, place: str) -> None:
    whole = pack(tmp_path / "x.zip", [("a.wav", b"one" * 700_000), ("b.wav", b"two")]).read_bytes()
    folder = storage.as_path(tmp_path / "archives") if place == "local" else bucket
    archives = [folder / name for name in ("x.zip", "x (1).zip", "x (2).zip")]
    for archive, content in zip(archives, (whole, whole.replace(b"two", b"tw0"), whole), strict=True):
        with storage.publish(archive) as path:
            path.write_bytes(content)
    assert len({content_digest(archive) for archive in archives}) == 1
    assert without_copies(archives) == (archives[:2], ["x (2).zip is left out: it holds the same as x.zip"])


# Texts beside clips


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_texts_beside_clips_are_given_by_the_clips_path(tmp_path: Path, pack: Pack, kind: str) -> None:
    members = [
        ("a/x.txt", b"\xef\xbb\xbfwith a mark"),
        ("a/x.wav", b""),
        ("y.json", b"{}"),
        ("y.txt", b"second to json"),
        ("z.txt", b"second to json"),
        ("z.JSON", b"[]"),
        ("dir\\cafe\u0301.TXT", b"other ways to write it"),
        ("broken.txt", b"caf\xe9"),
        ("broken.wav", b""),
        ("large.txt", b"a" * ((1 << 20) + 1)),
        ("largest.txt", b"a" * (1 << 20)),
    ]
    with open_archive(pack(tmp_path / "a", members, kind)) as archive:
        list(archive.clips())
        found = archive.sidecars()
    assert found.pop("largest") == (Sidecar(".txt", "a" * (1 << 20)),)
    assert "save it as UTF-8" in found.pop("broken")[0].problem
    assert "1,048,577 bytes" in found.pop("large")[0].problem
    assert found == {
        "a/x": (Sidecar(".txt", "with a mark"),),
        "y": (Sidecar(".json", "{}"), Sidecar(".txt", "second to json")),
        "z": (Sidecar(".json", "[]"), Sidecar(".txt", "second to json")),
        "dir/café": (Sidecar(".txt", "other ways to write it"),),
    }
    assert sidecar_key("dir/café.wav") in found


def test_a_zip_gives_its_texts_before_any_clip(tmp_path: Path, pack: Pack) -> None:
    path = pack(tmp_path / "a", [("x.wav", b""), ("x.txt", b"text"), ("y.txt", b"broken")])
    path.write_bytes(path.read_bytes().replace(b"broken", b"BROKEN"))
    with open_archive(path) as archive:
        found = archive.sidecars()
    assert found["x"] == (Sidecar(".txt", "text"),)
    assert "CRC-32" in found["y"][0].problem


# Errors on opening


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_trouble_of_the_machine_is_not_taken_for_damage(tmp_path: Path, pack: Pack, kind: str) -> None:
    path = pack(tmp_path / "a", CLIPS, kind)
    with open_archive(path) as archive, no_descriptors_left(), pytest.raises(OSError, match="Too many open files"):
        next(archive.clips()).open()
    with no_descriptors_left(), pytest.raises(OSError, match="Too many open files"), open_archive(path):
        pass


@pytest.mark.parametrize("name", ["none.zip", "folder", "file/a.zip"])
def test_a_missing_file_is_an_archive_error_that_names_it(tmp_path: Path, contents: Contents, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / name
    for read in (content_digest, clip_names):
        with pytest.raises(ArchiveError, match=f"{name} can't be opened"):
            read(storage.as_path(path))
    with pytest.raises(ArchiveError, match=f"{name} can't be opened"):
        contents(path)


def test_an_error_of_the_one_who_reads_stays_his(tmp_path: Path, pack: Pack) -> None:
    def read(path: Path) -> None:
        with open_archive(path) as archive:
            for _ in archive.clips():
                raise FileNotFoundError

    for kind in ("zip", "tar"):
        with pytest.raises(FileNotFoundError):
            read(pack(tmp_path / "a", CLIPS, kind))

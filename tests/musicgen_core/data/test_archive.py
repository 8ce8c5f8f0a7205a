from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import re
import tarfile
import uuid
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.data.archive import archive_stem, clip_names, content_digest, find_archives, iterate_clips
from musicgen_core.errors import ArchiveError, ClipRejected

Pack = Callable[..., Path]
KINDS = ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"]
CLIPS = [("audio/b.wav", b"beta" * 700), ("audio/a.WAV", b"alpha"), ("deep/er/c.wav", b"")]
OTHERS = [("readme.txt", b"text" * 300), ("audio/wav", b""), ("b.wav.bak", b"old")]


def contents(path: Path) -> list[tuple[str, bytes | str]]:
    """Each clip's name and bytes, or the reason for which it is rejected."""
    found: list[tuple[str, bytes | str]] = []
    for member in iterate_clips(path):
        try:
            found.append((member.name, member.read()))
        except ClipRejected as rejected:
            found.append((member.name, str(rejected)))
    return found


def digest(path: Path) -> str:
    return content_digest(storage.as_path(path))


# Finding


@pytest.fixture(params=["local", "remote"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, bucket: UPath) -> UPath:
    return storage.as_path(tmp_path) if request.param == "local" else bucket


def names_found(location: UPath | str) -> list[str]:
    return [path.name for path in find_archives(location)]


def touch(folder: UPath, *names: str) -> None:
    for name in names:
        storage.write_text(folder / name, "")


def test_a_directory_gives_its_archives_in_natural_order_and_nothing_else(folder: UPath) -> None:
    archives = ["b_1.zip", "b_2.ZIP", "b_3.tgz", "b_10.tar.gz", "b_11.tar", "b_100.txz"]
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
def test_nothing_found_is_an_error_that_names_the_place(folder: UPath, place: str) -> None:
    touch(folder, "metadata.jsonl")
    with pytest.raises(ArchiveError, match=re.escape(f"no archives found at {folder / place}")) as refused:
        find_archives(str(folder / place))
    assert ".zip" in refused.value.next_step


def test_two_archives_of_one_stem_are_an_error_that_names_both(folder: UPath) -> None:
    touch(folder, "b_1.zip", "b_1.tar.gz", "b_2.zip")
    with pytest.raises(ArchiveError) as refused:
        find_archives(folder)
    assert all(word in refused.value.found for word in ("b_1.zip", "b_1.tar.gz", "the shard b_1"))


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


# Reading


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_archives_are_told_apart_by_their_content(tmp_path: Path, pack: Pack, kind: str, name: str) -> None:
    path = pack(tmp_path / name, CLIPS, kind)
    assert contents(path) == CLIPS


@pytest.mark.parametrize("kind", KINDS)
def test_clips_are_the_members_ending_in_wav_in_the_archives_order(tmp_path: Path, pack: Pack, kind: str) -> None:
    mixed = [OTHERS[0], CLIPS[0], OTHERS[1], CLIPS[1], CLIPS[2], OTHERS[2]]
    path = pack(tmp_path / "a.zip", mixed, kind)
    assert contents(path) == CLIPS
    assert clip_names(storage.as_path(path)) == [name for name, _ in CLIPS]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_names_of_a_remote_archive_are_read_where_it_is(tmp_path: Path, bucket: UPath, pack: Pack, kind: str) -> None:
    storage.upload(pack(tmp_path / "a.zip", CLIPS, kind), bucket / "a.zip")
    assert clip_names(bucket / "a.zip") == [name for name, _ in CLIPS]
    assert content_digest(bucket / "a.zip") == digest(tmp_path / "a.zip")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_members_of_one_name_are_each_read(tmp_path: Path, pack: Pack, kind: str) -> None:
    twins = [("a.wav", b"first"), ("a.wav", b"second")]
    assert contents(pack(tmp_path / "a.zip", twins, kind)) == twins


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_without_clips_has_none(tmp_path: Path, pack: Pack, kind: str) -> None:
    assert contents(pack(tmp_path / "a", OTHERS, kind)) == []


def test_links_and_devices_of_a_tar_are_rejected_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in (
            ("soft.wav", tarfile.SYMTYPE),
            ("hard.wav", tarfile.LNKTYPE),
            ("device.wav", tarfile.CHRTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
        folder = tarfile.TarInfo("folder.wav")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        entry = tarfile.TarInfo("good.wav")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"good"))
    *rejected, good = contents(path)
    assert [name for name, _ in rejected] == ["soft.wav", "hard.wav", "device.wav"]
    assert all("a link or a device" in str(reason) for _, reason in rejected)
    assert good == ("good.wav", b"good")


def test_damaged_and_encrypted_members_of_a_zip_are_rejected_and_the_rest_goes_on(tmp_path: Path, pack: Pack) -> None:
    members = [(f"{name}.wav", name.encode() * 100) for name in ("good", "damaged", "secret", "last")]
    path = pack(tmp_path / "a.zip", members)
    data = bytearray(path.read_bytes())
    data[data.index(b"damageddamaged")] ^= 1
    data[data.index(b"secret.wav") - 30 + 6] |= 1  # the flag bits in its local header
    data[data.rindex(b"secret.wav") - 46 + 8] |= 1  # and in the directory
    path.write_bytes(data)
    (good, damaged, secret, last) = contents(path)
    assert (good, last) == (members[0], members[3])
    assert damaged[0] == "damaged.wav" and "CRC" in str(damaged[1])
    assert secret[0] == "secret.wav" and "encrypted" in str(secret[1])


def test_a_zip_inside_a_tar_does_not_make_the_tar_a_zip(tmp_path: Path, pack: Pack) -> None:
    inner = pack(tmp_path / "inner.zip", [("inner.wav", b"inner")]).read_bytes()
    path = pack(tmp_path / "outer.tar", [*CLIPS, ("inner.zip", inner)], "tar")
    assert contents(path) == CLIPS


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
def test_compression_in_several_streams_is_read_to_the_end(tmp_path: Path, pack: Pack, module: object) -> None:
    """As pbzip2 and bgzip write it."""
    plain = pack(tmp_path / "a.tar", CLIPS, "tar").read_bytes()
    half = len(plain) // 2
    (tmp_path / "b.tar").write_bytes(module.compress(plain[:half]) + module.compress(plain[half:]))  # type: ignore[attr-defined]
    assert contents(tmp_path / "b.tar") == CLIPS


def test_a_name_that_is_not_utf8_becomes_one_that_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name in (b"\x82\xa0.wav", b"\x82\xa1.wav"):
            tar.addfile(tarfile.TarInfo(name.decode("utf-8", "surrogateescape")))
    names = [name for name, _ in contents(path)]
    assert len({name.encode("utf-8") for name in names}) == 2
    assert all(name.endswith(".wav") for name in names)


# Damage


def noise(seed: int, size: int = 3000) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_breaks_off_anywhere_never_passes_for_whole(
    tmp_path_factory: pytest.TempPathFactory, pack: Pack, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    members = [("a.wav", noise(1)), ("b.txt", noise(2)), ("c.wav", noise(3)), ("d.wav", noise(4, 100))]
    whole = pack(folder / "whole", members, kind).read_bytes()
    end = whole.rindex(members[-1][1]) + 100 if kind == "tar" else len(whole)  # behind it a tar is only padding
    clips = [member for member in members if member[0].endswith(".wav")]
    between = 0
    for cut in {*range(0, end, 97), *range(end - 30, end)}:
        (folder / "cut").write_bytes(whole[:cut])
        try:
            found = contents(folder / "cut")
        except ArchiveError:
            continue
        # a tar has no table of contents, so a cut right between two members can't be told from its end
        assert kind == "tar" and cut % 512 == 0 and found == clips[: len(found)]
        between += 1
    assert between <= len(members)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_change_lead_to_no_other_error_than_the_archives_or_the_clips(
    tmp_path_factory: pytest.TempPathFactory, pack: Pack, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    members = [("a.wav", b"a" * 300), ("b.wav", noise(2, 600)), ("c.wav", b"c")]
    whole = pack(folder / "whole", members, kind).read_bytes()

    @settings(max_examples=120, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(1, 255)), min_size=1, max_size=3))
    def check(flips: list[tuple[int, int]]) -> None:
        data = bytearray(whole)
        for place, change in flips:
            data[place] ^= change
        (folder / "flipped").write_bytes(data)
        for read in (contents, digest):
            with suppress(ArchiveError):
                read(folder / "flipped")

    check()


def test_a_damaged_header_in_a_tar_is_an_error_and_not_the_end(tmp_path: Path, pack: Pack) -> None:
    path = pack(tmp_path / "a.tar", [("a.wav", b"a" * 512), ("b.wav", b"b" * 512)], "tar")
    data = bytearray(path.read_bytes())
    data[1024 + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArchiveError, match="damaged header"):
        contents(path)


@pytest.mark.parametrize(
    "content", [b"", b"no archive", bytes(5000), b"PK\3\4 no zip", b"\x1f\x8b no gzip", b"BZh", noise(5)]
)
def test_a_file_that_is_no_archive_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "music.zip").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"music\.zip can't be read as a zip or tar"):
        contents(tmp_path / "music.zip")
    with pytest.raises(ArchiveError, match=r"music\.zip can't be read as a zip or tar"):
        clip_names(storage.as_path(tmp_path / "music.zip"))


def test_a_missing_file_is_an_archive_error(tmp_path: Path) -> None:
    for read in (contents, digest, lambda path: clip_names(storage.as_path(path))):
        with pytest.raises(ArchiveError, match="No such file"):
            read(tmp_path / "none.zip")


# The digest


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_does_not_depend_on_the_files_name_or_time(tmp_path: Path, pack: Pack, kind: str) -> None:
    path = pack(tmp_path / "a.zip", CLIPS, kind)
    before = digest(path)
    os.utime(path, (0, 0))
    assert digest(path.rename(tmp_path / "b.tar")) == before


def test_the_digest_of_a_zip_does_not_depend_on_its_members_times(tmp_path: Path) -> None:
    digests = set()
    for year in (1990, 2020):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name, data in CLIPS:
                archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), data)
        digests.add(digest(tmp_path / "a.zip"))
    assert len(digests) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_follows_every_members_content_name_and_order(tmp_path: Path, pack: Pack, kind: str) -> None:
    variants = [CLIPS, CLIPS[::-1], CLIPS[:2], [("audio/x.wav", CLIPS[0][1]), *CLIPS[1:]]]
    variants += [[*CLIPS[:i], (name, data + b"!"), *CLIPS[i + 1 :]] for i, (name, data) in enumerate(CLIPS)]
    changed = [*CLIPS[:1], (CLIPS[1][0], CLIPS[1][1].upper()), *CLIPS[2:]]  # of the same size
    digests = {digest(pack(tmp_path / "a.zip", members, kind)) for members in [*variants, changed]}
    assert len(digests) == len(variants) + 1

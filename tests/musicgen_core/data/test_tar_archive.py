"""Members of tars of every format, and their names."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from musicgen_core.data.archive import open_archive
from musicgen_core.data.members import Limits
from tests.fixture_types import Contents, Pack
from tests.musicgen_core.data.tar_entries import CLIPS, entry, sealed, write

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
GNU_TAR = shutil.which("tar") and b"GNU tar" in subprocess.run(["tar", "--version"], capture_output=True).stdout


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read(tmp_path: Path, contents: Contents, form: int) -> None:
    names = ["a.wav", "x" * 60 + "/" + "y" * 90 + ".wav"] + (["z" * 300 + ".wav"] if form else [])
    assert contents(write(tmp_path / "a", [entry(name, b"data") for name in names], form)) == [
        (name, b"data") for name in names
    ]


def test_links_and_devices_are_rejected_and_the_rest_is_read(tmp_path: Path, contents: Contents) -> None:
    kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"M"]
    entries = [entry(f"{i}.wav", type=kind, linkname="/etc/passwd") for i, kind in enumerate(kinds)]
    path = write(tmp_path / "a", [*entries, entry("folder.wav", type=tarfile.DIRTYPE), entry("good.wav", b"good")])
    *rejected, good = contents(path)
    assert [name for name, _ in rejected] == [f"{i}.wav" for i in range(len(kinds))]
    assert all("a link or a device" in str(reason) for _, reason in rejected)
    assert good == ("good.wav", b"good")


@pytest.mark.skipif(not GNU_TAR, reason="needs GNU tar")
@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"]
)
def test_sparse_members_are_read_with_their_holes(tmp_path: Path, contents: Contents, form: str) -> None:
    with open(tmp_path / "a.wav", "wb") as file:
        for i in range(30):
            file.seek(i * 65_536)
            file.write(b"piece %d" % i)
        file.truncate(3 << 20)
    (tmp_path / "b.wav").write_bytes(b"next")
    kind, *version = form.split()
    command = ["tar", "-C", tmp_path, "-S", "-cf", tmp_path / "a.tar", f"--format={kind}", *version, "a.wav", "b.wav"]
    subprocess.run(command, check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20
    assert contents(tmp_path / "a.tar") == [("a.wav", (tmp_path / "a.wav").read_bytes()), ("b.wav", b"next")]


def test_a_zip_inside_a_tar_does_not_make_the_tar_a_zip(tmp_path: Path, pack: Pack, contents: Contents) -> None:
    inner = pack(tmp_path / "inner.zip", [("inner.wav", b"inner")]).read_bytes()
    path = pack(tmp_path / "outer.tar", [*CLIPS, ("inner.zip", inner)], "tar")
    assert contents(path) == CLIPS
    data = bytearray(path.read_bytes())
    data[257:265] = bytes(8)  # as before POSIX
    (tmp_path / "old.tar").write_bytes(sealed(data[:512]) + data[512:])
    assert contents(tmp_path / "old.tar") == CLIPS


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "花火.wav"), ("cp932", "花火.wav"), ("cp437", "Größe.wav")])
def test_names_are_read_as_they_were_meant(
    tmp_path: Path, contents: Contents, encoding: str, name: str, form: int
) -> None:
    raw_name = name.encode(encoding).decode("utf-8", "surrogateescape")
    names = [name for name, _ in contents(write(tmp_path / "a", [entry(raw_name), entry("é.wav")], form))]
    assert names == [name, "é.wav"]


def test_the_setting_applies_except_to_names_declared_as_utf8(tmp_path: Path, contents: Contents) -> None:
    raw_name = "音乐.wav".encode("gbk").decode("utf-8", "surrogateescape")
    path = write(tmp_path / "a", [entry(raw_name), entry("é.wav", pax_headers={"path": "é.wav"})], tarfile.GNU_FORMAT)
    assert contents(path, name_encoding="gbk")[0][0] == "音乐.wav"
    path = write(tmp_path / "a", [entry("é.wav")], tarfile.PAX_FORMAT)
    assert contents(path, name_encoding="gbk")[0][0] == "é.wav"


def test_no_clip_hides_behind_a_nul(tmp_path: Path, contents: Contents) -> None:
    entries = [entry("x", b"data", pax_headers={"path": name}) for name in ("a.wav\0.txt", "a.txt\0.wav")]
    assert contents(write(tmp_path / "a", entries)) == [("a.wav␀.txt", b"data"), ("a.txt␀.wav", b"data")]


def test_a_member_is_kept_until_it_is_opened_from_wherever(tmp_path: Path, pack: Pack) -> None:
    with open_archive(pack(tmp_path / "a", CLIPS, "tar.gz")) as archive:
        members = list(archive.clips())
        for member, (name, data) in reversed(list(zip(members, CLIPS, strict=True))):
            with member.open() as file:
                assert (member.name, file.read()) == (name, data)


def test_each_pass_over_a_tar_is_measured_on_its_own(
    tmp_path: Path, pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgen_core.data.members._ALWAYS_ALLOWED", 0)
    path = pack(tmp_path / "a.tar", CLIPS, "tar")
    with open_archive(path, Limits(max_ratio=1.5)) as archive:
        for _ in range(2):
            assert archive.read_sidecars() == {}
            assert [member.name for member in archive.clips()] == [name for name, _ in CLIPS]

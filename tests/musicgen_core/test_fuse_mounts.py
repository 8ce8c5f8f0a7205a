"""Folders like Google Drive's in Colab, where files can't be replaced by renaming, linked, or locked.

With mfusepy, libfuse and the right to mount, a real file system that refuses all that; else, or as well, the calls of
this process are refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musicgen_core import storage
from musicgen_core.errors import RunDirectoryError
from musicgen_core.generation.files import GeneratedSample, write_sample
from musicgen_core.training.files.run_directory import RunDirectory
from musicgen_core.training.files.run_lock import RunLock

SCRIPT = Path(__file__).parents[1] / "drive_like.py"


def can_mount() -> bool:
    try:
        import mfusepy  # noqa: F401
    except (ImportError, OSError):  # the latter without libfuse
        return False
    return Path("/dev/fuse").exists() and os.geteuid() == 0


CAN_MOUNT = can_mount()


@pytest.mark.parametrize("points_to", ["precious.txt", "nothing"])
def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path, points_to: str) -> None:
    (tmp_path / "precious.txt").write_text("the only copy")
    (tmp_path / "latest.pt").symlink_to(tmp_path / points_to)
    whole = tmp_path / f"latest.pt{storage.WHOLE}"
    whole.write_text("new")
    storage.finish_replacement(whole)
    assert (tmp_path / "precious.txt").read_text() == "the only copy"
    assert (tmp_path / "latest.pt").read_text() == "new" and not (tmp_path / "latest.pt").is_symlink()


@pytest.fixture(params=["refused", pytest.param("mounted", marks=pytest.mark.skipif(not CAN_MOUNT, reason="no FUSE"))])
def drive(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "drive"
    if request.param == "mounted":
        yield from mount(tmp_path / "backing", folder)
    else:
        folder.mkdir()
        refuse(folder, monkeypatch)
        yield folder


def mount(backing: Path, folder: Path) -> Iterator[Path]:
    backing.mkdir()
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(backing), str(folder)])
    deadline = time.monotonic() + 120
    while not folder.is_mount():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        process.wait(timeout=120)


def refuse(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all calls of this process in `folder` fail that Drive may refuse."""

    def renaming(allowed: Callable[..., Any]) -> Callable[..., Any]:
        def rename(old: Any, new: Any, **given: Any) -> Any:
            if Path(new).is_relative_to(folder) and Path(new).exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            return allowed(old, new, **given)

        return rename

    def unsupported(*_args: Any, **_given: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "replace", renaming(os.replace))
    monkeypatch.setattr(os, "rename", renaming(os.rename))
    monkeypatch.setattr(os, "link", unsupported)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    is_on_fuse = storage.is_on_fuse
    monkeypatch.setattr(storage, "is_on_fuse", lambda path: path.is_relative_to(folder) or is_on_fuse(path))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_test_folder_refuses_what_drive_refuses(drive: Path) -> None:
    for name in ("a", "b"):
        (drive / name).write_text(name)
    for refused in (
        lambda: os.replace(drive / "a", drive / "b"),
        lambda: os.link(drive / "a", drive / "c"),
        lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB),
    ):
        with open(drive / "a", "r+") as file, pytest.raises(OSError, match=r"exists|supported"):
            refused()
    assert storage.is_on_fuse(drive)


def test_a_disk_is_no_mounted_folder(tmp_path: Path) -> None:
    assert not storage.is_on_fuse(tmp_path)


def test_files_are_written_and_written_again(drive: Path) -> None:
    for text in ("old", "new", "newest"):
        storage.write_text(storage.as_path(drive / "folder" / "x"), text)
        assert (drive / "folder" / "x").read_text() == text
    assert names_in(drive / "folder") == ["x"]


def test_a_publication_that_fails_leaves_the_old_file(drive: Path) -> None:
    target = storage.as_path(drive / "x")
    storage.write_text(target, "old")
    with pytest.raises(UnicodeEncodeError):
        storage.write_text(target, "ne\ud800")  # which can't be encoded
    assert target.read_text() == "old"
    assert names_in(drive) == ["x"]


@pytest.mark.parametrize("moment", ["truncate", "unlink", "rename"])
def test_whenever_a_process_ends_the_new_file_is_whole_and_found(
    moment: str, drive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Covers the moments between the complete file beside the target and the renamed one."""
    files = RunDirectory(storage.as_path(drive), drive)
    storage.write_text(files.latest, "old")
    calls = {"truncate": (os, "truncate"), "unlink": (Path, "unlink"), "rename": (Path, "rename")}
    owner, name = calls[moment]
    whole = getattr(owner, name)

    def killed(path: Any, *args: Any, **given: Any) -> Any:
        if str(path).endswith(f"latest.pt{storage.WHOLE}" if moment == "rename" else "latest.pt"):
            raise KeyboardInterrupt
        return whole(path, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KeyboardInterrupt):
            storage.write_text(files.latest, "new")
    assert (drive / f"latest.pt{storage.WHOLE}").read_text() == "new"
    again = shutil.copytree(drive, drive.parent / "again")
    files.delete_partials()
    assert files.latest.read_text() == "new"
    assert names_in(drive) == ["latest.pt"]
    storage.write_text(storage.as_path(again / "latest.pt"), "newer")
    assert (again / "latest.pt").read_text() == "newer"


def test_locking_works_without_flock_and_after_a_crash(drive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicgen_core.training.files.run_lock.BEAT_S", 0.1)
    root = storage.as_path(drive / "run")
    with RunLock(root), pytest.raises(RunDirectoryError, match="already active"), RunLock(root):
        pass
    assert not list((drive / "run").glob("*"))
    script = (
        "import os, sys\nfrom musicgen_core import storage\nfrom musicgen_core.training.files.run_lock import RunLock\n"
    )
    script += "lock = RunLock(storage.as_path(sys.argv[1])).__enter__()\nos._exit(9)"
    assert subprocess.run([sys.executable, "-c", script, str(root)], check=False).returncode == 9
    assert names_in(drive / "run") == [".lock"]
    with RunLock(root):
        pass


def test_a_sample_can_be_rewritten(drive: Path) -> None:
    for seed in (1, 2):
        piece = GeneratedSample("generated_000", np.zeros(100, np.float32), np.zeros((4, 2), np.uint16), {"seed": seed})
        write_sample(drive, piece, ["flac"])
    assert f'"seed": {seed}' in (drive / "generated_000.json").read_text()
    assert names_in(drive) == [f"generated_000.{end}" for end in ("flac", "json", "npy", "png", "wav")]

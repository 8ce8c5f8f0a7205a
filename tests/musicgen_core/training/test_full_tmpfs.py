"""Runs on a small tmpfs that is really full."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from musicgen_core.training.train import train
from tests.fixture_types import KillAfter, LeftIn, MakeRequest

pytestmark = pytest.mark.usefixtures("quick_retries")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32m", "musicgen-test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(filler: Path, spare: int = 0) -> None:
    """Write until the disk is full but for so many bytes."""
    with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(filler, filler.stat().st_size - spare)


def test_a_resume_waits_where_the_disk_is_really_full(
    request_for: MakeRequest, killed_after: KillAfter, small_disk: Path, left_in: LeftIn
) -> None:
    request = request_for(run_dir=str(small_disk / "run"), save_every_steps=2, full_models="none")
    filler, waits = small_disk / "filler", list[str | None]()
    killed_after(request, 3)
    fill(filler, spare=8192)  # for the lock

    def wait(reason: str | None) -> None:
        waits.append(reason)
        filler.unlink(missing_ok=True)

    result = train(request, on_wait=wait)
    reason, end = waits
    assert end is None and reason is not None and "are free" in reason
    assert (result.resumed_from, result.steps) == (3, 6)
    assert [row["step"] for row in left_in(request.run_dir).rows] == [1, 2, 3, 4, 5, 6]


def test_a_disk_that_is_really_full_is_named_and_waited_for(
    request_for: MakeRequest, small_disk: Path, left_in: LeftIn
) -> None:
    request = request_for(run_dir=str(small_disk / "run"), save_every_steps=2, full_models="none")
    filler, waits = small_disk / "filler", list[str | None]()

    def fill_after(row: dict[str, float]) -> None:
        if row["step"] == 3:
            fill(filler)

    def wait(reason: str | None) -> None:
        waits.append(reason)
        filler.unlink(missing_ok=True)

    result = train(request, on_step=fill_after, on_wait=wait)
    reason, end = waits
    assert end is None and reason is not None and f"no space left on device: {request.run_dir}/" in reason
    assert "unexpected pos" not in " ".join(result.warnings)
    left = left_in(request.run_dir)
    assert [row["step"] for row in left.rows] == [1, 2, 3, 4, 5, 6]
    assert "latest.pt" in left.files and not any(name.endswith(".partial") for name in left.files)

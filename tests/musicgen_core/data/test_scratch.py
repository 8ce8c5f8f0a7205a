from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from musicgen_core.data import scratch as module
from musicgen_core.data.scratch import filled, scratch


@pytest.mark.parametrize("in_memory", [True, False])
def test_content_is_read_through_the_file_and_through_its_descriptor(
    in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr(module, "_MAX_IN_MEMORY", -1)
    for blocks in ([], [b"a"], [b"ab", b"c" * 100_000], [b"x" * (1 << 20)] * 3):
        with filled(sum(map(len, blocks)), iter(blocks)) as file:
            assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 0
            assert os.fstat(file.fileno()).st_size == sum(map(len, blocks))
            with open(os.dup(file.fileno()), "rb") as same:
                assert same.read() == b"".join(blocks)
            file.seek(0)
            assert file.read() == b"".join(blocks)


def test_only_what_is_large_goes_to_the_disk_and_nothing_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch(64 << 20) as small, scratch((64 << 20) + 1) as large:
        assert os.fstat(small.fileno()).st_dev != os.fstat(large.fileno()).st_dev
        assert os.fstat(large.fileno()).st_dev == tmp_path.stat().st_dev
        assert list(tmp_path.iterdir()) == []


def descriptors() -> set[str]:
    """Those on scratch files: others come and go with the threads of other tests."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if "musicgen-" in str(entry.readlink()):
                found.add(entry.name)
    return found


def test_a_file_that_can_not_be_filled_is_closed() -> None:
    def blocks() -> Iterator[bytes]:
        assert descriptors() > before
        yield b"a"
        raise KeyboardInterrupt

    before = descriptors()
    with pytest.raises(KeyboardInterrupt):
        filled(2, blocks())
    assert descriptors() == before

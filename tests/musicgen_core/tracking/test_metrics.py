from __future__ import annotations

import json
import math
import os
import resource
import signal
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from musicgen_core import storage
from musicgen_core.tracking import MetricsWriter, cut_metrics, read_metrics


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "metrics.jsonl"
    for step in range(1, 6):
        MetricsWriter(path).append({"step": step, "train/loss": 1 / step})
    return path


def test_metrics_come_back_as_they_were_written(metrics: Path) -> None:
    assert read_metrics(metrics) == [{"step": step, "train/loss": 1 / step} for step in range(1, 6)]


def test_before_the_first_step_there_are_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    cut_metrics(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("last_step", [0, 3, 5, 9])
def test_metrics_are_cut_back_to_a_step(metrics: Path, last_step: int) -> None:
    cut_metrics(metrics, last_step)
    assert [row["step"] for row in read_metrics(metrics)] == list(range(1, min(last_step, 5) + 1))
    assert [path.name for path in metrics.parent.iterdir()] == ["metrics.jsonl"]


DAMAGED = [b'{"step": 3, "train/lo', b"\xff\xfe\x00", b"[1, 2]", b'{"train/loss": 1.0}', b'{"step": "3"}', b"7"]


@pytest.mark.parametrize("line", [*DAMAGED, b'{"step": 3, "train/loss": "low"}', b"[" * 100_000])
def test_a_damaged_line_hides_no_other_and_is_kept(
    metrics: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    lines = metrics.read_bytes().splitlines()
    damaged = b"\n".join([*lines[:2], line, *lines[3:]]) + b"\n"
    metrics.write_bytes(damaged)
    assert [row["step"] for row in read_metrics(metrics)] == [1, 2, 4, 5]
    cut_metrics(metrics, 4)
    MetricsWriter(metrics).append({"step": 5})
    assert [row["step"] for row in read_metrics(metrics)] == [1, 2, 4, 5]
    assert (metrics.parent / "metrics.damaged-1.jsonl").read_bytes() == damaged
    assert "left out: 1; " in caplog.text and "metrics.damaged-1.jsonl" in caplog.text
    cut_metrics(metrics, 4)
    assert len(list(metrics.parent.iterdir())) == 2


def test_a_full_disk_leaves_no_copies_of_damaged_metrics(metrics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, damaged = storage.publish, metrics.read_bytes() + b"damaged\n"
    metrics.write_bytes(damaged)

    def publish(target: UPath) -> AbstractContextManager[Path]:
        if target.name == metrics.name:
            raise OSError(28, "No space left on device", str(target))
        return whole(target)

    monkeypatch.setattr(storage, "publish", publish)
    with pytest.raises(OSError, match="No space left"):
        cut_metrics(metrics, 4)
    assert [path.name for path in metrics.parent.iterdir()] == [metrics.name] and metrics.read_bytes() == damaged


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to nothing"])
def test_other_than_regular_files_are_moved_aside(tmp_path: Path, kind: str) -> None:
    metrics = tmp_path / "metrics.jsonl"
    make = {
        "pipe": lambda: os.mkfifo(metrics),
        "folder": metrics.mkdir,
        "link to nothing": lambda: metrics.symlink_to(tmp_path / "elsewhere"),
    }
    make[kind]()
    assert read_metrics(metrics) == []
    with pytest.raises(OSError, match=r"."):
        MetricsWriter(metrics).append({"step": 1})
    cut_metrics(metrics, 0)
    MetricsWriter(metrics).append({"step": 1})
    assert read_metrics(metrics) == [{"step": 1}]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "metrics.damaged-1.jsonl"}


def test_a_link_is_read_and_its_target_unchanged(metrics: Path, tmp_path: Path) -> None:
    target = metrics.rename(tmp_path / "elsewhere.jsonl")
    content = target.read_bytes()
    metrics.symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        MetricsWriter(metrics).append({"step": 6})
    cut_metrics(metrics, 3)
    MetricsWriter(metrics).append({"step": 4})
    assert [row["step"] for row in read_metrics(metrics)] == [1, 2, 3, 4]
    assert target.read_bytes() == content and not metrics.is_symlink()


def test_the_file_is_strict_json_and_nan_is_still_read(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 1, "train/loss": NaN, "train/grad_norm": Infinity}\n')

    def strict(line: str) -> object:
        return json.loads(line, parse_constant=lambda token: pytest.fail(f"{token} is no JSON"))

    assert math.isnan(read_metrics(metrics)[0]["train/loss"])
    cut_metrics(metrics, 1)
    MetricsWriter(metrics).append({"step": 2, "train/loss": math.nan, "train/grad_norm": -math.inf})
    rows = [strict(line) for line in metrics.read_text().splitlines()]
    assert rows == [{"step": step, "train/loss": None, "train/grad_norm": None} for step in (1, 2)]
    assert all(math.isnan(row["train/loss"]) and math.isnan(row["train/grad_norm"]) for row in read_metrics(metrics))


@given(data=st.data())
def test_a_crash_at_any_byte_keeps_all_complete_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    lines = [json.dumps({"step": step, "train/loss": 0.5}) + "\n" for step in (1, 2, 3)]
    kept = data.draw(st.integers(0, len("".join(lines))))
    path.write_text("".join(lines)[:kept])
    whole = sum(len("".join(lines[:n])) - 1 <= kept for n in (1, 2, 3))  # the line feed itself may be missing
    cut_metrics(path, 10)
    MetricsWriter(path).append({"step": 9})
    assert [row["step"] for row in read_metrics(path)] == [*range(1, whole + 1), 9]


def test_rows_refused_by_a_full_disk_are_written_later(metrics: Path) -> None:
    """RLIMIT_FSIZE makes the kernel write a part of the row and then refuse, as a full disk does."""
    before, writer = read_metrics(metrics), MetricsWriter(metrics)
    writer.append({"step": 6})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.stat().st_size + 5, limits[1]))
    try:
        for step in (7, 8):
            with pytest.raises(OSError, match="large"):
                writer.append({"step": step})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    writer.append({"step": 9})
    assert read_metrics(metrics) == [*before, *({"step": step} for step in (6, 7, 8, 9))]

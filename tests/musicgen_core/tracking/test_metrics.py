from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(data=st.data())
def test_cut_anywhere_by_a_crash_the_file_keeps_its_whole_lines_and_grows_on(
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


def test_rows_that_a_full_disk_refused_follow_later_and_half_a_row_hides_none(metrics: Path) -> None:
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

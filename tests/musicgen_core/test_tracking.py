from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st
from wandb.proto import wandb_internal_pb2

from musicgen_core.tracking import MetricsWriter, Wandb, cut_metrics, plot_losses, read_metrics


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


def test_losses_are_drawn_with_and_without_validation(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [{"step": 1, "train/loss": 2.0}, {"step": 2, "train/loss": 1.5}]
    plot_losses(rows, tmp_path / "without.png")
    plot_losses([*rows, {"step": 3, "train/loss": 1.2, "val/loss": 1.4}], tmp_path / "with.png")
    without, with_validation = ((tmp_path / name).read_bytes() for name in ("without.png", "with.png"))
    assert without.startswith(b"\x89PNG") and with_validation.startswith(b"\x89PNG")
    assert without != with_validation


# WandB


def offline_records(file: Path) -> Iterator[Any]:
    """What a `.wandb` file holds: LevelDB's log, blocks of 32 KiB of fragments, after a header of 7 bytes."""
    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]
    data, position, whole = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:  # too little for a fragment's header: the block's rest is padding
            position += 32768 - position % 32768
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last fragment of one
            yield record_type.FromString(whole)
            whole = b""


def history_in(folder: Path) -> list[dict[str, Any]]:
    (file,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    records = [record for record in offline_records(file) if record.WhichOneof("record_type") == "history"]
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records
    ]


@pytest.fixture
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("without_key")
def test_without_a_key_the_run_is_kept_offline_under_the_run_directory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = tmp_path / "best_lora.pt"
    adapter.write_bytes(b"weights")
    with caplog.at_level("INFO", logger="musicgen_core.tracking"):
        run = Wandb(tmp_path, "abcd1234", "a name", "train", {"lora_r": 8})
    for step in (1, 2):
        run.log({"global_step": step, "train/loss": 1 / step})
    run.log_adapter(adapter, "best", {"base_model": "debug"})
    run.finish()

    said = [record.message for record in caplog.records if record.name == "musicgen_core.tracking"]
    assert said == [f"WandB runs offline: no WANDB_API_KEY is set. Later: wandb sync {tmp_path / 'wandb'}"]
    logged = [{name: row[name] for name in ("global_step", "train/loss")} for row in history_in(tmp_path)]
    assert logged == [{"global_step": 1, "train/loss": 1.0}, {"global_step": 2, "train/loss": 0.5}]
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-abcd1234.wandb")
    records = list(offline_records(file))
    metrics = [record.metric for record in records if record.HasField("metric")]
    axes = {metric.glob_name or metric.name: metric.step_metric for metric in metrics}
    assert axes["global_step"] == "" and axes["*"] == "global_step"
    (described,) = [record.run for record in records if record.HasField("run")]
    assert (described.run_id, described.display_name, described.job_type) == ("abcd1234", "a name", "train")
    staged = [path for path in (tmp_path / "wandb" / "artifacts").rglob("*") if path.is_file()]
    assert any(path.read_bytes() == b"weights" for path in staged)
    assert "WANDB_DATA_DIR" not in os.environ  # the next run in this process stages under its own directory


class Broken:
    """A WandB run of which everything fails."""

    id = "broken"
    url = None

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no connection")

        return fail


@pytest.mark.parametrize("failing", ["init", "log", "log_adapter", "finish"])
@pytest.mark.usefixtures("without_key")
def test_a_wandb_that_fails_is_left_out_and_said_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, failing: str
) -> None:
    broken: Any = Broken()
    if failing != "init":
        broken.define_metric = lambda *_, **__: None
    monkeypatch.setattr(wandb, "init", lambda **_: broken)
    run = Wandb(tmp_path, "abcd1234", "a name", "train", {})
    adapter = tmp_path / "best_lora.pt"
    adapter.write_bytes(b"weights")
    calls: Mapping[str, Any] = {
        "log": lambda: run.log({"global_step": 1}),
        "log_adapter": lambda: run.log_adapter(adapter, "best", {}),
        "finish": run.finish,
    }
    for name in dict.fromkeys([failing, *calls]):
        if name in calls:
            calls[name]()
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["WandB failed and is left out from here on (no connection); metrics.jsonl has everything"]
    assert run.url is None


@pytest.mark.usefixtures("without_key")
def test_an_interruption_that_a_failure_of_wandb_hides_comes_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As pybind11 does to Prefect's TerminationSignal while wandb is imported."""

    def fail(**_: object) -> None:
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(KeyboardInterrupt):
        Wandb(tmp_path, "abcd1234", "a name", "train", {})


def test_disabled_it_is_not_even_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("started"))
    run = Wandb(tmp_path, "abcd1234", "a name", "train", {})
    run.log({"global_step": 1})
    run.finish()
    assert list(tmp_path.iterdir()) == []

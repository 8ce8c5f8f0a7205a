"""`musicgen-flows estimate` as a person meets it. No test here has a Prefect server."""

from __future__ import annotations

import dataclasses
import re
import shutil
import uuid
from pathlib import Path

import pytest

from deployments.cli import main
from musicgen_core import storage
from musicgen_core.data.shards import Rejected
from musicgen_core.estimate import Estimate
from musicgen_core.estimate_rows import SPEEDS, estimated_rows, training_rows

DEBUG_CPU = ["--model", "debug", "--device", "cpu"]
LARGE = Estimate(
    archives=139,
    archive_bytes=700 << 30,
    unreadable=[],
    clips=139_000,
    is_exact=True,
    asked_clips=100,
    sampled_clips=100,
    sampled_archives=4,
    rejected=[],
    audio_seconds=139_000 * 30.0,
    epoch_seconds=139_000 * 30.0,
    clips_per_sec=50.0,
    audio_seconds_per_sec=1500.0,
    captioned_seconds_per_sec=None,
    download_bytes_per_sec=None,
    tokens_bytes=1_400_000_000,
    scratch_bytes=0,
    workers=4,
    device="cuda",
    gpu="NVIDIA H200",
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musicgen_core.estimate.LEAST_SECONDS", 0.0)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # whatever asked a server would fail
    monkeypatch.setattr("deployments.console.output.width", 200)


def table(printed: str) -> dict[str, str]:
    """Names and values of the printed list."""
    return dict(re.findall(r"^ +(\S.*?)  +(\S.*)$", printed, re.MULTILINE))


def test_the_table_has_all_that_was_promised(
    demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    shutil.copy(archives / "archive_batch_0001.zip", archives / "archive_batch_0001 (1).zip")
    (archives / "b.rar").touch()
    arguments = ["estimate", str(archives), "--hourly-price", "3.5", "--max-workers", "1", *DEBUG_CPU]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "b.rar not read" in printed and "archive_batch_0001 (1).zip is left out" in printed
    rows = table(printed)
    assert rows["archives"].startswith("2, ")
    assert rows["clips"] == "17, about 32.0 seconds of audio"
    assert rows["measured on"].startswith(
        "17 clips of 2 archives, which have no more (asked for: 100); 1 rejected (5.9%)"
    )
    assert rows["audio/broken.wav"].startswith("not decodable as audio")
    assert "clips/s" in rows["speed"] and rows["speed"].endswith("on cpu, 1 archive at a time")
    assert rows["time to go"].startswith("about ") and rows["time to go"].endswith("plus start-up (loading, compiling)")
    assert rows["disk"].endswith("of tokens")
    assert rows["cost"].endswith(" at 3.50 an hour")
    assert "scratch disk" not in rows
    assert rows["training"].startswith("5 epochs of 32.0 seconds of audio; the speed of debug has not been measured")
    assert rows["note"].startswith("fewer than 40 clips") and "cost of training" not in rows


def test_training_is_priced_only_on_gpus_with_measured_speed() -> None:
    rows = dict(training_rows(LARGE, "facebook/musicgen-large", 4.0))
    assert rows == {
        "training": "5 epochs of 1,158.3 hours of audio: about 8.0 hours at 720 seconds of audio a second, "
        "measured on an H200",
        "cost of training": "about 32.18 at 4.00 an hour",
    }
    for name, known in (("NVIDIA L4", "NVIDIA L4"), ("", "a CPU")):
        other = dataclasses.replace(LARGE, gpu=name)
        [(_, text)] = training_rows(other, "facebook/musicgen-large", 4.0)
        assert f"about 8.0 hours on an H200; {known} has not been measured: train with --max-steps 20" in text
    assert list(dict(training_rows(LARGE, "facebook/musicgen-small", 4.0))) == ["training"]


def test_figures_of_training_are_those_of_the_benchmarks() -> None:
    figures = (Path(__file__).parents[2] / "bench" / "RESULTS.md").read_text()
    assert "719, 721 → 720" in figures and SPEEDS["NVIDIA H200"] == 720  # one H200, micro-batch 16
    assert "**703** (430)" in figures and SPEEDS["NVIDIA H100 80GB HBM3"] == 703  # one H100, micro-batch 8


def test_estimates_of_remote_archives_include_download_and_scratch(
    demo_archives: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = storage.as_path(f"memory://{uuid.uuid4().hex}")
    storage.upload_tree(demo_archives, bucket)
    try:
        assert main(["estimate", f"{bucket}/*.zip", "--clips", "4", *DEBUG_CPU]) == 0
    finally:
        bucket.fs.rm(bucket.path, recursive=True)
    rows = table(capsys.readouterr().out)
    assert rows["measured on"].startswith("4 clips of 2 archives")
    assert "of downloading at" in rows["time to go"]
    assert "archives downloaded at a time" in rows["scratch disk"] or "1 archive downloaded" in rows["scratch disk"]
    assert "cost" not in rows


def test_numbers_are_shown_in_familiar_units() -> None:
    rows = dict(estimated_rows(LARGE, hourly_price=4.0))
    assert rows["archives"] == "139, 751.6 GB"
    assert rows["clips"] == "139,000, about 1,158.3 hours of audio"
    assert rows["measured on"] == "100 clips of 4 archives"
    assert rows["speed"] == "50.0 clips/s, 1,500 seconds of audio a second, on cuda, 4 archives at a time"
    assert rows["time to go"] == "about 46.3 minutes, plus start-up (loading, compiling)"
    assert rows["disk"] == "about 1.4 GB of tokens"
    assert rows["cost"] == "about 3.09 at 4.00 an hour"


def test_estimates_list_unreadable_remote_and_rejected_data() -> None:
    found = dataclasses.replace(
        LARGE,
        unreadable=[f"{number}.zip can't be read" for number in range(5)],
        is_exact=False,
        rejected=[Rejected(f"{number}.wav", "silent") for number in range(4)],
        download_bytes_per_sec=100 * 2**20,
        scratch_bytes=20 << 30,
    )
    rows = estimated_rows(found, None)
    assert dict(rows)["clips"].startswith("about 139,000, about")
    assert [text for name, text in rows if name == "  can't be read"] == [
        f"{number}.zip can't be read" for number in range(3)
    ]
    assert [text for name, text in rows if name == "  …"] == ["and 2 more", "and 1 more"]
    assert [name for name, text in rows if text == "silent"] == ["  0.wav", "  1.wav", "  2.wav"]
    assert "4 rejected (4.0%)" in dict(rows)["measured on"]
    assert dict(rows)["time to go"].startswith(
        "about 2.8 hours at most, plus start-up (loading, compiling): 46.3 minutes of encoding and 2.0 hours of "
        "downloading at 104.9 MB/s"
    )
    assert dict(rows)["scratch disk"] == "21.5 GB, for 4 archives downloaded at a time"
    assert "cost" not in dict(rows)


def test_wrong_usage_lists_every_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "--clips", "0", "--hourly-price", "-1", "--max-workers", "none", "--limit=3"]) == 2
    printed = capsys.readouterr().err
    for problem in ("ARCHIVES is missing", "--clips: ", "--hourly-price: ", "--max-workers: ", "no option --limit"):
        assert problem in printed


def test_a_mistake_is_one_line_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(tmp_path), *DEBUG_CPU]) == 1
    assert capsys.readouterr().err.startswith("error: no archives found at ")
    (tmp_path / "a.zip").write_bytes(b"PK, and no more of a zip")
    assert main(["estimate", str(tmp_path), *DEBUG_CPU]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {tmp_path}/a.zip can't be read as a zip or tar archive")
    assert printed.endswith("). Copy or pack the archive again\n") and printed.count("\n") == 1


def test_an_archive_that_cant_be_read_is_named_with_its_repair_before_tokenizing(
    demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    broken = archives / "archive_batch_0003.zip"
    broken.write_bytes(b"PK, and no more of a zip")
    assert main(["estimate", str(archives), "--clips", "4", *DEBUG_CPU]) == 0
    printed = capsys.readouterr().out
    reason = table(printed)["can't be read"]
    assert reason.startswith(f"{broken} can't be read as a zip") and reason.endswith("Copy or pack the archive again")
    step = next(line for line in printed.splitlines() if line.startswith("Next: "))
    assert step.startswith("Next: Repair what can't be read") and step.endswith("then tokenize")


def test_clips_without_descriptions_add_the_time_of_captioning_and_caption_is_next(
    demo_archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archives = Path(shutil.copytree(demo_archives, tmp_path / "archives", ignore=shutil.ignore_patterns("*.jsonl")))
    assert main(["estimate", str(archives), "--clips", "4", *DEBUG_CPU]) == 0
    printed = capsys.readouterr().out
    assert re.match(r"about .* of it: .*, \d+ seconds of audio a second", table(printed)["captioning"])
    assert f"uv run musicgen-flows caption {archives} {archives / 'metadata.jsonl'}" in printed
    assert main(["estimate", str(demo_archives), "--clips", "4", *DEBUG_CPU]) == 0
    assert "captioning" not in table(capsys.readouterr().out)

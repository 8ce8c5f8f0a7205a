"""Archives, tokens, runs and music on Google Cloud Storage and on Google Drive, by the commands that a user gives.

Results of Prefect's tasks in a bucket are in tests/deployments/test_team.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import get_current_settings
from upath import UPath

from musicgen_core import storage
from tests.gcs.conftest import Proxy, names_in
from tests.musicgen_core.test_fuse_mounts import CAN_MOUNT, mount

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
QUICK = [
    "--batch-size",
    "4",
    "--gradient-accumulation-steps",
    "1",
    "--segment-seconds",
    "1.0",
    "--save-every-steps",
    "2",
]

ADAPTERS = [f"lora_weights/{name}_lora.pt" for name in ("best", "final", "latest")]
COPY = ["config.json", "latest.pt", "loss.png", "metrics.jsonl", *ADAPTERS]
RUN = [
    *COPY,
    *(f"checkpoint_step_{step}.pt" for step in (2, 4)),
    *(f"lora_weights/lora_epoch_{epoch}.pt" for epoch in (1, 2)),
    *(f"full_models/{name}.pt" for name in ("best_model", "final_model", "checkpoint_epoch_1", "checkpoint_epoch_2")),
    *(f"{name}.png" for name in ("learning_rate", "perplexity")),
    *(f"evaluation/{name}" for name in ("evaluation.json", "report.html")),
]


def start(home: Path, *command: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(get_current_settings().api.url),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "TMPDIR": str(home),
        "PYTHONPATH": str(ROOT),
    }
    line = [sys.executable, "-m", "deployments.cli", *command, "--model", "debug", "--device", "cpu"]
    return subprocess.Popen(
        line, env=environment, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(home: Path, *command: str) -> str:
    process = start(home, *command)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output + errors


def versions(place: UPath) -> dict[str, str]:
    """Every object, and what changes when it is written again."""
    return {name: place.fs.info(f"{place.path}{name}")["generation"] for name in names_in(place)}


def test_everything_on_google_cloud_storage(place: UPath, proxy: Proxy, demo_archives: Path, tmp_path: Path) -> None:
    for file in demo_archives.iterdir():
        storage.upload(file, place / "archives" / file.name)
    given = {f"archives/{file.name}" for file in demo_archives.iterdir()}
    tokenize = ["tokenize", f"{place}archives", f"{place}tokens"]
    train = [
        "train",
        f"{place}tokens",
        f"{place}runs/jazz",
        "--max-steps",
        "5",
        "--copy-to",
        f"{place}copy/run",
        *QUICK,
    ]
    generate = ["generate", f"{place}music", "--prompt", "calm strings", "--duration", "0.5", "--save-codes"]
    generate += ["--adapter", f"{place}runs/jazz", "--copy-to", f"{place}copy/music"]

    run(tmp_path, *tokenize)
    shards = {f"tokens/{path.stem}{end}" for path in demo_archives.glob("*.zip") for end in (".parquet", ".json")}
    shards |= {"tokens/dataset.html"}
    assert set(names_in(place)) == given | shards

    killed = start(tmp_path, *train)
    deadline = time.monotonic() + 200
    while not (place / "runs" / "jazz" / "checkpoint_step_2.pt").exists() and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert "runs/jazz/full_models/final_model.pt" not in names_in(place)

    for kind, request in ((503, "GET"), ("drop", "GET /download"), (429, "POST /upload"), ("lose", "POST /upload")):
        proxy.fail(kind, request, times=2)
    output = run(tmp_path, *train)
    assert proxy.has_failed_as_planned
    metrics = [json.loads(line) for line in (place / "runs" / "jazz" / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in metrics]
    assert steps == list(range(1, steps[-1] + 1)), output

    run(tmp_path, *generate)
    after = versions(place)
    music = {f"generated_000.{end}" for end in ("json", "npy", "png", "wav")} | {"index.html"}
    expected = given | shards | {f"runs/jazz/{name}" for name in RUN} | {f"copy/run/{name}" for name in COPY}
    assert set(after) == expected | {f"{folder}/{name}" for folder in ("music", "copy/music") for name in music}

    for command in (tokenize, train, generate):
        run(tmp_path, *command)
    again = versions(place)
    assert set(again) == set(after)
    assert {name.partition("/")[0] for name in after if again[name] != after[name]} <= {"music", "copy"}
    assert not list(tmp_path.glob("musicgen-scratch-*"))


@pytest.mark.skipif(not CAN_MOUNT, reason="no FUSE: apt-get install libfuse2, pip install mfusepy")
def test_everything_on_drives_mount(demo_archives: Path, tmp_path: Path) -> None:
    for drive in mount(tmp_path / "backing", tmp_path / "drive"):
        archives = drive / "archives"
        archives.mkdir()
        for file in demo_archives.iterdir():
            shutil.copyfile(file, archives / file.name)
        tokenize = ["tokenize", str(archives), str(drive / "tokens")]
        train = ["train", str(drive / "tokens"), str(drive / "jazz"), "--max-steps", "5", *QUICK]
        generate = ["generate", str(drive / "music"), "--prompt", "calm strings", "--duration", "0.5"]
        run(tmp_path, *tokenize)
        killed = start(tmp_path, *train)
        while not (drive / "jazz" / "checkpoint_step_2.pt").exists() and killed.poll() is None:
            time.sleep(0.1)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        run(tmp_path, *train)
        for _ in range(2):
            run(tmp_path, *generate, "--adapter", str(drive / "jazz"))
        found = {str(path.relative_to(drive / "jazz")) for path in (drive / "jazz").rglob("*") if path.is_file()}
        assert {name for name in found if not name.startswith("wandb")} == set(RUN)
        rows = (drive / "jazz" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4, 5]
        stems = [path.stem for path in demo_archives.glob("*.zip")]
        assert {path.name for path in (drive / "tokens").iterdir()} == {
            *(f"{s}{e}" for s in stems for e in (".json", ".parquet")),
            "dataset.html",
        }
        assert {path.name for path in (drive / "music").glob("*.json")} == {"generated_000.json"}

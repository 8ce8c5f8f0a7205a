"""Tokenizing that is killed at any moment and restarted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from prefect.settings import get_current_settings

from musicgen_core import storage
from musicgen_core.data.shards import read_report, read_rows, shard_paths

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(3600)]
ARCHIVES, CLIPS = 8, 60
KILLS = int(os.environ.get("MUSICGEN_TEST_KILLS", "6"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    rng = np.random.default_rng(0)
    for number in range(ARCHIVES):
        with zipfile.ZipFile(folder / f"archive_batch_{number:04}.zip", "w") as archive:
            for clip in range(CLIPS):
                buffer = io.BytesIO()
                soundfile.write(buffer, 0.3 * rng.standard_normal(int(rng.uniform(4000, 30_000))), 32_000, format="WAV")
                archive.writestr(f"{number}/{clip}.wav", buffer.getvalue() if clip % 20 else b"broken")
    return folder


def start(archives: Path, tokens: Path, home: Path) -> subprocess.Popen[bytes]:
    """Start the command in its own process group."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": str(get_current_settings().api.url),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "results"),
        "TMPDIR": str(home),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = [sys.executable, "-m", "deployments.cli", "tokenize", str(archives), str(tokens)]
    command += ["--model", "debug", "--device", "cpu", "--max-workers", "2"]
    return subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.PIPE)


def begin(archives: Path, tokens: Path, home: Path) -> subprocess.Popen[bytes]:
    """Start the command, and wait until it processes an archive or has ended."""
    before = set(home.glob("musicgen-scratch-*"))
    process = start(archives, tokens, home)
    while len(set(home.glob("musicgen-scratch-*")) - before) < 2 and process.poll() is None:
        time.sleep(0.02)  # one is the flow's; a second one shows that an archive is being processed
    return process


def shards(tokens: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Return every clip and its codes, by shard; rejected clips have no codes."""
    place = storage.as_path(tokens)
    found = {}
    for marker in sorted(tokens.glob("*.json")):
        report = read_report(place, marker.stem)
        assert report is not None, f"{marker.stem} passes for whole and isn't"
        rows = [(row.clip, row.codes.tobytes()) for row in read_rows(Path(str(shard_paths(place, marker.stem)[0])))]
        found[marker.stem] = rows + [(entry.clip, b"") for entry in report.rejected]
    return found


def test_killing_at_random_moments_loses_and_duplicates_nothing(archives: Path, tmp_path: Path) -> None:
    undisturbed = begin(archives, tmp_path / "undisturbed", tmp_path)
    begun = time.monotonic()
    undisturbed.communicate(timeout=900)
    assert undisturbed.returncode == 0
    seconds_of_one = (time.monotonic() - begun) / ARCHIVES  # on this machine, as busy as it is

    rng = random.Random(20261123)
    tokens = tmp_path / "tokens"
    finished = []
    for _ in range(KILLS):
        enough = min(ARCHIVES, len(list(tokens.glob("*.json"))) + rng.randrange(3))
        process = begin(archives, tokens, tmp_path)
        while len(list(tokens.glob("*.json"))) < enough and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2 * seconds_of_one))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        finished.append(len(shards(tokens)))
        if finished[-1] == ARCHIVES:  # all done before the last kill: restart from scratch
            for file in tokens.iterdir():
                if file.is_file():
                    file.unlink()
    last = start(archives, tokens, tmp_path)
    output, _ = last.communicate(timeout=900)
    assert last.returncode == 0, output.decode()
    assert any(0 < count < ARCHIVES for count in finished), f"the kills did not fall into the work: {finished}"
    assert shards(tokens) == shards(tmp_path / "undisturbed")
    clips = [clip for rows in shards(tokens).values() for clip, _ in rows]
    assert len(clips) == len(set(clips)) == ARCHIVES * CLIPS
    assert not list(tmp_path.glob("musicgen-scratch-*"))
    assert json.loads((tokens / "archive_batch_0000.json").read_text())["clips"] == CLIPS - 3

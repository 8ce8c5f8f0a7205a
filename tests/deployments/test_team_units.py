"""The team's systemd units and scripts, and the names of its workers."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployments.environment import DEFAULTS, ROOT
from deployments.team.worker import RUN_SECONDS, command

TEAM = ROOT / "deployments" / "team"
UNITS = ("musicgen-server.service", "musicgen-worker@.service")
SCRIPTS = sorted(TEAM.glob("*.sh"))


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed: apt-get install systemd")
def test_systemd_finds_nothing_wrong_with_a_unit(name: str, tmp_path: Path) -> None:
    unit = (TEAM / name).read_text()
    program = unit.partition("ExecStart=")[2].split()[0]
    (tmp_path / name).write_text(unit.replace(program, sys.executable))  # the one thing that isn't here
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert name.partition(".")[0] not in done.stderr


def test_workers_let_runs_save_and_restart_after_a_crash() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(TEAM / "musicgen-worker@.service")
    service = unit["Service"]
    assert service["Restart"] == "always" and unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert service["KillMode"] == "mixed"  # not control-group: a second SIGTERM would end the saving
    assert RUN_SECONDS < int(service["TimeoutStopSec"])


def test_the_teams_server_has_the_ui_that_plays_music() -> None:
    lines = (TEAM / "musicgen-server.service").read_text().splitlines()
    assert f"Environment=PREFECT_SERVER_UI_V2_ENABLED={DEFAULTS['PREFECT_SERVER_UI_V2_ENABLED']}" in lines


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed: apt-get install shellcheck")
def test_shellcheck_finds_nothing_wrong_with_a_script(script: Path) -> None:
    done = subprocess.run(["shellcheck", "-x", script.name], cwd=TEAM, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "gpus", "queue"),
    [
        ("0", "0", None),
        ("default:1", "1", "default"),
        ("default:0-1-2-3", "0,1,2,3", "default"),
        ("tokenizing:none", "none", "tokenizing"),
    ],
)
def test_a_workers_name_says_its_queue_and_its_gpus(name: str, gpus: str, queue: str | None) -> None:
    arguments, environment = command(name, "machine")
    assert environment == {"CUDA_VISIBLE_DEVICES": gpus}
    assert arguments[arguments.index("--name") + 1] == f"machine-{name}"
    assert ("--work-queue" in arguments) == (queue is not None)
    assert queue is None or arguments[arguments.index("--work-queue") + 1] == queue

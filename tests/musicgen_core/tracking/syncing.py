"""Run `wandb sync` as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.musicgen_core.tracking.stand_in import StandIn


def sync(folder: Path, below: Path, server: StandIn) -> str:
    """Run exactly the logged command, and return its output."""
    environment = {**os.environ, "WANDB_CACHE_DIR": str(below / "cache"), "WANDB_BASE_URL": server.url}
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--no-skip-online", str(folder)]
    done = subprocess.run(command, cwd=below, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr

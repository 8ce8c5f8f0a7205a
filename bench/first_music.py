"""Time to the first music of `generate`, with a running Prefect server and a model on disk.

    python -m bench.random_large LARGE
    python -m bench.first_music LARGE --workdir DIR [--prompts 1 32] [--seconds 10]

Times the command as users run it, from its start and from the flow's start in Prefect to the first complete sample.
Each is run twice, as the first run compiles if there is no compilation cache.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx

from bench.servers import ROOT, prefect_server


def measure(given: argparse.Namespace, api: str, prompts: int, out: Path) -> str:
    command = [sys.executable, "-m", "deployments.cli", "generate", str(out), "--model", given.model]
    command += ["--device", given.device, "--duration", str(given.seconds)]
    for number in range(prompts):
        command += ["--prompt", f"calm piano, number {number}"]
    began = time.time()
    with open(given.workdir / "commands.log", "a") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "PREFECT_API_URL": api}, stdout=log, stderr=log
        )
        while process.poll() is None and not list(out.glob("*.json")):
            time.sleep(0.05)
        first = time.time()
        if process.wait() or not list(out.glob("*.json")):
            return f"| {prompts} | failed: see {given.workdir / 'commands.log'} |"
    flow_began = _newest_start(api)
    return f"| {prompts} | {first - began:.1f} | {first - flow_began:.1f} | {time.time() - began:.1f} |"


def _newest_start(api: str) -> float:
    """Return the start time of the newest flow run, in seconds since 1970."""
    found = httpx.post(f"{api}/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
    return datetime.fromisoformat(found[0]["start_time"].replace("Z", "+00:00")).astimezone(UTC).timestamp()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    given.workdir.mkdir(parents=True, exist_ok=True)
    print("| prompts | first music after s, from the command | from the flow's start | all of it |")
    print("| ---: | ---: | ---: | ---: |")
    with prefect_server(given.workdir, {}) as api:
        for prompts in given.prompts:
            for _ in range(2):
                print(measure(given, api, prompts, given.workdir / f"music-{prompts}-{time.time_ns()}"), flush=True)


if __name__ == "__main__":
    main()

"""Start-up time of the command line for help and usage errors, compared with Python's own.

    python -m bench.command_line [--runs 10]

Whole processes are timed from start to exit, in turn, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from bench.servers import ROOT

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "--version": ["-m", "deployments.cli", "--version"],
    "--help": ["-m", "deployments.cli", "--help"],
    "train --help": ["-m", "deployments.cli", "train", "--help"],
    "train --epoch 3": ["-m", "deployments.cli", "train", "--epoch", "3"],
}


def measure(arguments: Sequence[str]) -> tuple[float, float]:
    """Return wall time and CPU time of a process in seconds."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, check=False)
    took, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return took, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    given = parser.parse_args()
    for arguments in COMMANDS.values():  # warm-up, which writes .pyc files
        measure(arguments)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(given.runs):
        for name, arguments in COMMANDS.items():
            found[name].append(measure(arguments))
    load = os.getloadavg()[0]
    print(f"{given.runs} runs each, load {load:.1f} on {os.cpu_count()} cores at the end; medians, in seconds")
    print("| command | start to exit | fastest | CPU time |\n| --- | --- | --- | --- |")
    for name, runs in found.items():
        took, cpu = zip(*runs, strict=True)
        row = (statistics.median(took), min(took), statistics.median(cpu))
        print(f"| `{name}` | " + " | ".join(f"{value:.2f}" for value in row) + " |")


if __name__ == "__main__":
    main()

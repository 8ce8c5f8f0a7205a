"""`musicgen-flows run`: `prefect deployment run` by a deployment's short name."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from deployments.console import output
from deployments.environment import LOCAL_API, has_server
from deployments.options import UsageError, describe_unknown
from deployments.registering import DEPLOYMENTS
from deployments.weekly import set_weekly
from musicgen_core.errors import MusicgenError


def run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("musicgen-flows run", description=__doc__)
    parser.add_argument("deployment", metavar="DEPLOYMENT", help=", ".join(DEPLOYMENTS))
    parser.add_argument(
        "-p", "--param", action="append", default=[], metavar="name=value", help="a parameter of the flow, JSON or text"
    )
    parser.add_argument("--watch", action="store_true", help="wait for the end; exit 1 if the run fails")
    parser.add_argument(
        "--weekly",
        choices=("on", "off"),
        help="train-lora alone: switch its weekly schedule on or off, run nothing; with on, -p sets its parameters",
    )
    chosen, unknown = parser.parse_known_args(arguments)
    problems = describe_unknown(unknown)
    if chosen.deployment not in DEPLOYMENTS:
        problems.append(f"there is no deployment {chosen.deployment!r}; there are {', '.join(DEPLOYMENTS)}")
    problems += [f"{entry!r} is not name=value" for entry in chosen.param if "=" not in entry]
    if chosen.weekly and (chosen.deployment != "train-lora" or chosen.watch):
        problems.append("--weekly goes with train-lora, and not with --watch")
    if chosen.weekly == "off" and chosen.param:
        problems.append("-p goes with --weekly on, not with off")
    if problems:
        raise UsageError(problems)
    if not has_server():
        raise MusicgenError(
            f"no Prefect server answers at {LOCAL_API}, and PREFECT_API_URL is not set",
            "Start one with musicgen-flows up",
        )
    if chosen.weekly:
        parameters = set_weekly(chosen.weekly == "on", dict(map(_parsed, chosen.param)))
        shown = ", ".join(f"{name}={json.dumps(value)}" for name, value in parameters.items())
        output.print(f"The weekly retraining is {chosen.weekly}, its parameters: {shown}", markup=False)
        return 0
    command = [
        sys.executable,
        "-m",
        "prefect",
        "--no-prompt",
        "deployment",
        "run",
        f"{chosen.deployment}/{chosen.deployment}",
    ]
    for entry in chosen.param:
        command += ["--param", entry]
    if chosen.watch:
        command.append("--watch")
    try:
        return 0 if subprocess.run(command, env=os.environ, check=False).returncode == 0 else 1
    except KeyboardInterrupt:
        output.print("The run goes on without this terminal: see the Prefect UI")
        return 130


def _parsed(entry: str) -> tuple[str, Any]:
    """`name=value` → both, the value read as `prefect deployment run` does."""
    name, _, value = entry.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value

"""Resolve every dependency again, and keep the new versions in pyproject.toml if everything passes with them.

    uv run --no-project .ci/refresh_pins.py

Versions that resolve may not work together: SQLAlchemy 2.1 fits the metadata of Prefect 3.8.8 and stops its scheduler,
which nothing but a server at work shows. So the services of a real server are tested first, then a schedule that
starts a training, then all of .ci/run. If one fails, or is interrupted, the old versions are put back.

uv.lock would hold the addresses of package indexes, so the pins, transitive ones too, live in pyproject.toml as
constraints. One version of each package serves every supported Python.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
# What builds the source distributions among the dependencies (audiocraft, flashy, encodec, antlr4, docopt, …) and us.
BUILD_REQUIREMENTS = ["hatchling", "editables", "setuptools<82", "wheel"]
_SLOW = ["uv", "run", "pytest", "-m", "slow"]
CHECKS = [
    [*_SLOW, "tests/deployments/test_server_services.py"],
    [*_SLOW, "tests/deployments/test_up.py"],
    [".ci/run"],
]
"""What must pass with new versions; first what fails soonest."""


def resolve(*arguments: str, stdin: str | None = None) -> list[str]:
    command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--fork-strategy", "fewest"]
    command += ["--upgrade", "--no-header", "--no-annotate", "--quiet", *arguments]
    done = subprocess.run(command, check=True, text=True, input=stdin, stdout=subprocess.PIPE)
    # The marker of a pin would say where the package is needed; a constraint holds wherever it is.
    return sorted({line.split(";")[0].strip() for line in done.stdout.splitlines() if "==" in line})


def with_block(text: str, name: str, pins: list[str]) -> str:
    before, start, rest = text.partition(f"\n{name} = [\n")
    _, end, after = rest.partition("]\n")
    if not end:
        raise SystemExit(f"error: {PYPROJECT} has no list {name}")
    return before + start + "".join(f'    "{pin}",\n' for pin in pins) + end + after


def keep_if_passed(pyproject: Path, text: str, checks: Sequence[Sequence[str]]) -> None:
    """Write the new text and run the checks in its folder; put the old text back unless all of them pass."""
    old = pyproject.read_text(encoding="utf-8")
    pyproject.write_text(text, encoding="utf-8")
    try:
        for check in checks:
            subprocess.run(check, cwd=pyproject.parent, check=True)
    except BaseException as error:
        pyproject.write_text(old, encoding="utf-8")
        changed = sorted(set(text.splitlines()) - set(old.splitlines()))
        print(f"The old pins are back in {pyproject}. What was tried:", *changed, sep="\n", file=sys.stderr)
        if isinstance(error, subprocess.CalledProcessError):
            raise SystemExit(
                f"error: {shlex.join(check)} fails with the new versions. Hold back what breaks it"
            ) from error
        raise


def main() -> None:
    text = PYPROJECT.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        unpinned = Path(folder) / "pyproject.toml"
        unpinned.write_text(with_block(text, "constraint-dependencies", []), encoding="utf-8")
        pins = resolve(str(unpinned), "--group", f"{unpinned}:dev")
    text = with_block(text, "constraint-dependencies", pins)
    text = with_block(text, "build-constraint-dependencies", resolve("-", stdin="\n".join(BUILD_REQUIREMENTS)))
    keep_if_passed(PYPROJECT, text, CHECKS)
    print(f"{len(pins)} packages pinned in {PYPROJECT.name}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    main()

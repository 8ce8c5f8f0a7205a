"""Resolve every dependency anew and write the versions into pyproject.toml.

    uv run --no-project .ci/refresh_pins.py

uv.lock would hold the addresses of package indexes, so the pins, transitive ones too, live in pyproject.toml as
constraints. One version of each package serves every supported Python.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
# What builds the source distributions among the dependencies (audiocraft, flashy, encodec, antlr4, docopt, …) and us.
BUILD_REQUIREMENTS = ["hatchling", "editables", "setuptools<82", "wheel"]


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


def main() -> None:
    text = PYPROJECT.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        unpinned = Path(folder) / "pyproject.toml"
        unpinned.write_text(with_block(text, "constraint-dependencies", []), encoding="utf-8")
        pins = resolve(str(unpinned), "--group", f"{unpinned}:dev")
    text = with_block(text, "constraint-dependencies", pins)
    text = with_block(text, "build-constraint-dependencies", resolve("-", stdin="\n".join(BUILD_REQUIREMENTS)))
    PYPROJECT.write_text(text, encoding="utf-8")
    print(f"{len(pins)} packages pinned in {PYPROJECT.name}")


if __name__ == "__main__":
    main()

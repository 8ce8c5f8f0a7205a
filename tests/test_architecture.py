"""docs/architecture.md: its arrows are the imports, and its flows are all that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DIAGRAM = PAGE[PAGE.index("subgraph musicgen_core") :].partition("\n    end")[0]
PARTS = set(re.findall(r"^ +(\w+)\[", DIAGRAM, re.MULTILINE))


def drawn() -> set[tuple[str, str]]:
    arrows = re.findall(r"^ +(\w+) -(?:->|\..*?\.->) ([\w& ]+)$", DIAGRAM, re.MULTILINE)
    return {(source, target) for source, targets in arrows for target in targets.split(" & ")}


def imported() -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for path in (ROOT / "musicgen_core").rglob("*.py"):
        part = path.relative_to(ROOT / "musicgen_core").parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "musicgen_core":
                found |= {(part, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("musicgen_core."):
                found.add((part, (node.module or "").split(".")[1]))
    return {(source, target) for source, target in found if source != target and {source, target} <= PARTS}


def test_the_arrows_between_the_cores_parts_are_the_imports() -> None:
    assert drawn() == imported()


def test_every_package_of_the_core_is_drawn() -> None:
    packages = {path.parent.name for path in (ROOT / "musicgen_core").glob("*/__init__.py")}
    assert packages <= PARTS


@pytest.mark.parametrize("path", sorted((ROOT / "flows").glob("*.py")), ids=lambda path: path.stem)
def test_every_flow_is_named(path: Path) -> None:
    for name in re.findall(r"^@flow\(\s*name=\"([\w-]+)\"", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert name in PAGE

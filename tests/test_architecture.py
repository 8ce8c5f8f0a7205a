"""docs/architecture.md: its arrows are the imports, its flows are all that exist, its walks are the calls.

The files and names that CONTRIBUTING.md and docs/models.md name exist.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
from prefect import Flow

from tests.call_traces import LAYERS, ROOT, calls, definition, knows

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DIAGRAM = PAGE[PAGE.index("subgraph musicgen_core") :].partition("\n    end")[0]
PARTS = set(re.findall(r"^ +(\w+)\[", DIAGRAM, re.MULTILINE))
WALKS = dict(re.findall(r"^### (An? .*)\n((?:.|\n)*?)(?=^##)", PAGE, re.MULTILINE))
PREFECT = "Prefect"
"""The caller of steps that Prefect calls"""


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


def test_every_module_on_top_of_training_is_described() -> None:
    names = {path.name for path in (ROOT / "musicgen_core" / "training").glob("*.py")} - {"__init__.py"}
    assert [name for name in sorted(names) if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("path", sorted((ROOT / "flows").glob("*.py")), ids=lambda path: path.stem)
def test_every_flow_is_named(path: Path) -> None:
    for name in re.findall(r"^@flow\(\s*name=\"([\w-]+)\"", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert name in PAGE


@dataclass(frozen=True)
class Step:
    """A function of a walk and its caller, both by dotted name; the first step has none."""

    function: str
    caller: str


def steps_of(walk: str) -> list[Step]:
    found = re.findall(r"^(\d+)\. `([\w.]+)`(?: \(from (\w+)\))?", WALKS[walk], re.MULTILINE)
    assert [int(number) for number, _, _ in found] == list(range(1, len(found) + 1))
    names = [name if name.split(".")[0] in LAYERS else f"musicgen_core.{name}" for _, name, _ in found]
    callers = ["", *names[:-1]]
    for index, (_, _, given) in enumerate(found):
        if given:
            callers[index] = given if given == PREFECT else names[int(given) - 1]
    return [Step(*pair) for pair in zip(names, callers, strict=True)]


def names_in_traces(function: str, before: Collection[str]) -> set[str]:
    """Return how the trace of a caller may name a function; a method also by its own name, if its class is known."""
    owner, _, method = function.rpartition(".")
    is_method = isinstance(definition(owner), ast.ClassDef) and any(knows(step, owner) for step in before)
    return {function, f".{method}"} if is_method else {function}


def test_there_are_three_walks() -> None:
    assert len(WALKS) == 3


@pytest.mark.parametrize("walk", WALKS)
def test_every_step_of_a_walk_exists(walk: str) -> None:
    assert [step.function for step in steps_of(walk) if definition(step.function) is None] == []


@pytest.mark.parametrize("walk", WALKS)
def test_every_step_of_a_walk_is_called_by_its_caller_in_this_order(walk: str) -> None:
    steps = steps_of(walk)
    functions = [step.function for step in steps]
    left = {caller: calls(caller, functions) for caller in functions}
    for number, step in enumerate(steps):
        if step.caller in ("", PREFECT):
            continue
        assert step.caller in functions[:number], f"{step.function} stands above its caller"
        trace, names = left[step.caller], names_in_traces(step.function, functions[:number])
        found = next((place for place, name in enumerate(trace) if name in names), None)
        assert found is not None, f"{step.caller} does not call {step.function}, or not after the step before"
        left[step.caller] = trace[found + 1 :]


@pytest.mark.parametrize("walk", WALKS)
def test_what_prefect_calls_is_a_deployment_or_overrides_its_flow(walk: str) -> None:
    deployed = re.findall(r"entrypoint: ([\w.:]+)", (ROOT / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    for step in steps_of(walk):
        if step.caller == PREFECT and step.function not in [each.replace(":", ".") for each in deployed]:
            owner, _, method = step.function.rpartition(".")
            kind = definition(owner)
            assert isinstance(kind, ast.ClassDef) and "Flow" in ast.unparse(kind.bases[0])
            assert hasattr(Flow, method)


def test_files_and_names_in_contributings_table_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|[^|]*\| `([\w./]+)` \| (.*) \|$", page, re.MULTILINE)
    assert rows
    for file, change in rows:
        content = (ROOT / file).read_text(encoding="utf-8")
        assert [name for name in re.findall(r"`(\w+)`", change) if not re.search(rf"\b{name}\b", content)] == [], file


def test_every_cell_of_the_table_of_models_names_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?!---)(\w[^|]*) \|(.*)\|$", page, re.MULTILINE)
    assert len(rows) >= 8
    for what, cells in rows:
        named = [re.fullmatch(r"`([\w/.]+)::(\w+)`", cell.strip()) for cell in cells.split("|")]
        for each in named:
            assert each is not None, what
            content = (ROOT / "tests" / "musicgen_core" / each[1]).read_text(encoding="utf-8")
            assert f"def {each[2]}(" in content, each[0]

"""The direction of imports, their circles, and what importing the flows costs."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["musicgen_core", "tasks", "flows", "deployments"]  # each may import those before it
GPU_STACK = {"torch", "audiocraft", "peft", "wandb", "transformers"}


def sources(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down_the_layers_only(layer: str) -> None:
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    files = sources(layer)
    assert files
    for path in files:
        assert not above & set(imports(path)), path


def modules_imported(path: Path, modules: set[str]) -> set[str]:
    """Return those of `modules` that a file imports anywhere: at the top, in functions and for annotations."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & modules or {node.module or ""}
    return found & modules


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = {path.relative_to(ROOT).with_suffix("").parts: path for layer in LAYERS for path in sources(layer)}
    modules = {".".join(parts).removesuffix(".__init__"): path for parts, path in files.items()}
    graph = {name: modules_imported(path, set(modules)) for name, path in modules.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which lists the circle


@pytest.mark.parametrize(
    ("package", "allowed"),
    [("compute", {"processes.distributed"}), ("files", set()), ("processes", {"request", "train"})],
)
def test_packages_of_training_import_only_what_is_below_them(package: str, allowed: set[str]) -> None:
    prefix = "musicgen_core.training."
    for path in sources(f"musicgen_core/training/{package}"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(prefix.rstrip(".")):
                continue
            names = [alias.name for alias in node.names] if f"{node.module}." == prefix else [node.module or ""]
            for name in (each.removeprefix(prefix) for each in names):
                assert name.split(".")[0] == package or name in allowed, f"{path} imports {name}"


def test_the_core_does_not_know_prefect() -> None:
    for path in sources("musicgen_core"):
        assert "prefect" not in set(imports(path)), path


@pytest.mark.parametrize("layer", ["tasks", "flows"])
def test_tasks_and_flows_import_no_gpu_stack_at_module_level(layer: str) -> None:
    for path in sources(layer):
        assert not GPU_STACK & set(imports(path, top_level_only=True)), path


def test_every_flow_imports_without_the_gpu_stack() -> None:
    modules = [f"flows.{path.stem}" for path in sources("flows") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; print(*sorted({GPU_STACK!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_tokens_are_compared_with_a_model_without_the_gpu_stack() -> None:
    code = "import sys; from deployments.inputs import check_adapter; from musicgen_core.training.codec_check import *"
    code += "; check_tokens_codec('', 'demo'); check_codec_of_adapter('', '.')"
    code += f"; print(*sorted({GPU_STACK!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_doctor_loads_before_anything_that_its_checks_find_broken() -> None:
    tried = GPU_STACK | {"prefect", "huggingface_hub"}
    code = f"import sys, deployments.doctor; print(*sorted({tried!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("layer", LAYERS)
def test_nothing_of_wandb_is_used_but_its_public_module(layer: str) -> None:
    for path in sources(layer):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"wandb\.(sdk|proto|apis|errors|util|env)\b|from wandb\b", text), path


def test_no_file_carries_a_standard_modules_name() -> None:
    """With a file entrypoint its folder comes first on sys.path, and would hide the standard module."""
    ours = {path.stem for layer in LAYERS for path in sources(layer)} - {"__init__"}
    assert not ours & set(sys.stdlib_module_names)

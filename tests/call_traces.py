"""The project's functions in the order in which another one calls them, from the syntax trees, without importing it."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("musicgen_core", "tasks", "flows", "deployments")
_ENTRYPOINT = re.compile(r"[a-z_]\w*(\.\w+)*:\w+")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """The names of a module.

    Attributes:
        imported: dotted names by the names that the module gives them, also those imported within functions.
        defined: functions, classes, methods (`Class.method`) and assigned values, by name.
    """

    imported: Mapping[str, str]
    defined: Mapping[str, ast.AST]


@cache
def module(name: str) -> Module | None:
    """Return a module of the project; None if there is no such module."""
    path = ROOT.joinpath(*name.split("."))
    file = next((each for each in (path.with_suffix(".py"), path / "__init__.py") if each.is_file()), None)
    if file is None or name.split(".")[0] not in LAYERS:
        return None
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    imported = {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    return Module(imported, dict(_definitions(tree.body)))


def _definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in body:
        if isinstance(node, _Function | ast.ClassDef):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((f"{prefix}{each.id}", node.value) for each in targets if isinstance(each, ast.Name))


def parted(dotted: str) -> tuple[str, str]:
    """Return the longest part of a dotted name that is a module, and the rest; both may be empty."""
    words = dotted.split(".")
    for count in range(len(words), 0, -1):
        if module(found := ".".join(words[:count])):
            return found, ".".join(words[count:])
    return "", dotted


def canonical(dotted: str) -> str:
    """Return a dotted name with the module that defines it, if it was imported from one that only imports it."""
    name, rest = parted(dotted)
    found, (first, dot, last) = module(name), rest.partition(".")
    if found is None or first in found.defined or first not in found.imported:
        return dotted
    return canonical(f"{found.imported[first]}{dot}{last}")


def definition(dotted: str) -> ast.AST | None:
    """Return a function, class, method or value; None if it doesn't exist."""
    name, rest = parted(dotted)
    found = module(name)
    return found.defined.get(rest) if found is not None else None


def knows(dotted: str, known: str) -> bool:
    """Return whether the module of `dotted` defines or imports the name `known`."""
    name, _ = parted(dotted)
    found = module(name)
    assert found is not None
    return parted(known)[0] == name or known in map(canonical, found.imported.values())


def calls(dotted: str, steps: Collection[str]) -> list[str]:
    """Return the names that a function calls or passes on, in order, with those of its module's other functions.

    A name of the project is a dotted one; an attribute of another object is `.name`. A function that is defined within
    another one stands where it is passed on and again at the end, since it may be called at any time from there on.

    Args:
        dotted: the function or method; for a class its constructor.
        steps: functions whose own calls are left out.
    """
    node = definition(dotted)
    if isinstance(node, ast.ClassDef):
        dotted = f"{dotted}.__init__"
        node = definition(dotted)
    return [] if node is None else list(_Trace(frozenset(steps)).of_function(dotted, node))


@dataclass
class _Trace:
    """One traversal of a function.

    Attributes:
        steps: functions whose own calls are left out.
        active: functions that are being traversed, to end recursion.
        within: functions that are defined within others and not yet passed on, by name.
    """

    steps: frozenset[str]
    active: set[str] = field(default_factory=set)
    within: dict[str, _Function] = field(default_factory=dict)

    def of_function(self, dotted: str, node: ast.AST) -> Iterator[str]:
        self.active.add(dotted)
        if isinstance(node, _Function):
            for statement in node.body:
                yield from self.of(statement, dotted)
            for inner in [each for each in node.body if isinstance(each, _Function)]:
                yield from self.of_body(inner, dotted)
        elif not isinstance(node, ast.ClassDef):
            yield from self.of(node, dotted)
        self.active.remove(dotted)

    def of_body(self, inner: _Function, inside: str) -> Iterator[str]:
        for statement in inner.body:
            yield from self.of(statement, inside)

    def of(self, node: ast.AST, inside: str) -> Iterator[str]:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.within[node.name] = node
            case ast.AnnAssign():
                yield from self.of(node.value, inside) if node.value else ()
            case ast.Constant(value=str(text)) if _ENTRYPOINT.fullmatch(text):
                yield canonical(text.replace(":", "."))
            case ast.Call():
                yield from self._of_call(node, inside)
            case ast.Name(id=name) if inner := self.within.pop(name, None):
                yield from self.of_body(inner, inside)
            case ast.Name() | ast.Attribute():
                yield from self._of_name(node, inside)
            case _:
                for child in ast.iter_child_nodes(node):
                    yield from self.of(child, inside)

    def _of_call(self, node: ast.Call, inside: str) -> Iterator[str]:
        """Yield the names in the arguments, then the called one, then those that are passed on to it."""
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        passed = [each for each in arguments if isinstance(each, ast.Name | ast.Attribute | ast.Lambda)]
        for argument in arguments:
            if argument not in passed:
                yield from self.of(argument, inside)
        yield from self.of(node.func, inside)
        for argument in passed:
            yield from self.of(argument, inside)

    def _of_name(self, node: ast.Name | ast.Attribute, inside: str) -> Iterator[str]:
        found = self._resolved(node, inside)
        if found is None:
            assert isinstance(node, ast.Attribute)
            yield from self.of(node.value, inside)
            yield f".{node.attr}"
            return
        yield found
        if parted(found)[0] == parted(inside)[0] and found not in self.active | self.steps:
            own = definition(found)
            if isinstance(own, ast.ClassDef):
                found, own = f"{found}.__init__", definition(f"{found}.__init__")
            if own is not None:
                yield from self.of_function(found, own)

    def _resolved(self, node: ast.expr, inside: str) -> str | None:
        """Return the canonical name of an expression; None if it is an attribute of an object."""
        name, rest = parted(inside)
        found = module(name)
        assert found is not None
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            own = f"{name}.{rest.rpartition('.')[0]}.{node.attr}"
            return own if definition(own) is not None else None
        if isinstance(node, ast.Attribute):
            base = self._resolved(node.value, inside)
            return canonical(f"{base}.{node.attr}") if base and (module(base) or definition(base)) else None
        if isinstance(node, ast.Name):
            dotted = f"{name}.{node.id}" if node.id in found.defined else found.imported.get(node.id, node.id)
            return canonical(dotted)
        return None

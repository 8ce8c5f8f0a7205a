"""The catalogues have every message that a person may read, with its placeholders, and nothing else."""

from __future__ import annotations

import ast
import re
import string
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

from deployments.cli import COMMANDS
from deployments.help import texts_of_help
from musicgen_core.errors import MusicgenError, RunDirectoryError
from musicgen_core.language import LANGUAGES

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("musicgen_core", "tasks", "flows", "deployments")
MARKED = {"say": 0, "message": 0, "counted": 1}
"""Functions, and which of their arguments is a message"""
LOGGED = {"info", "warning", "error"}
SHOWN = {"Check", "Finding", "Made", "Step", "Unreadable"} | {
    kind.__name__ for kind in (MusicgenError, *MusicgenError.__subclasses__(), *RunDirectoryError.__subclasses__())
}
"""Functions and errors whose texts a person reads in the terminal"""
HOME = (ROOT / "musicgen_core" / "language.py", ROOT / "musicgen_core" / "wording.py")


@cache
def messages() -> set[str]:
    """Return the messages that are marked in modules and in templates, and the definitions that the help shows."""
    of_templates = {
        str(text)
        for package in PACKAGES
        for _, _, text, _, _ in extract_from_dir(
            str(ROOT / package), [("**.j2", "jinja2.ext.babel_extract")], keywords={"say": None}
        )
    }
    of_modules = (marked_in(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return texts_of_help(COMMANDS).union(of_templates, *of_modules)


def marked_in(path: Path) -> set[str]:
    """Return the messages of a module. Unlike Babel's extraction this finds those within f-strings, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if is_log(node, path):
            found.add(node.args[0].value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MARKED:
            text = node.args[MARKED[node.func.id]]
            if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
                assert path in HOME, f"{path}:{node.lineno}: only a literal can be translated"
                continue
            found.add(text.value)
    return found


def is_log(node: ast.AST, path: Path) -> TypeGuard[Any]:
    """Return whether a call logs a message of the core, which the terminal shows."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LOGGED
        and ast.unparse(node.func.value)
        == ("logger" if path.is_relative_to(ROOT / "musicgen_core") else "_core_logger")
        and isinstance(node.args[0], ast.Constant)
        and re.search("[a-z]{2}", node.args[0].value) is not None
    )


@cache
def catalogue(code: str) -> Catalog:
    with (ROOT / "musicgen_core" / "translations" / f"{code}.po").open("rb") as source:
        return read_po(source, locale=code, abort_invalid=True)


def placeholders(text: str) -> list[tuple[str, str]]:
    if re.search(r"%[sdgr.]", text):  # of a log, in their order
        return [(found, "") for found in re.findall(r"%[^sdgfr%]*[sdgfr%]", text)]
    return sorted((name, spec or "") for _, name, spec, _ in string.Formatter().parse(text) if name is not None)


@pytest.mark.parametrize("code", LANGUAGES[1:])
def test_every_message_is_translated_and_none_is_left_over(code: str) -> None:
    translated = {str(entry.id) for entry in catalogue(code) if entry.id and entry.string and not entry.fuzzy}
    missing, stale = messages() - translated, translated - messages()
    listed = "".join(f'\nmsgid {_quoted(text)}\nmsgstr ""\n' for text in sorted(missing))
    assert not missing, f"translations/{code}.po lacks:\n{listed}"
    assert not stale, f"translations/{code}.po has messages that are no more: {sorted(stale)}"
    assert not catalogue(code).obsolete and len(translated) == len(list(catalogue(code))) - 1


def test_what_the_terminal_shows_is_given_as_a_message() -> None:
    plain = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(text)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SHOWN
        for text in (*node.args, *(keyword.value for keyword in node.keywords))
        if is_plain(text)
    ]
    assert plain == []


def is_plain(text: ast.expr) -> bool:
    """Return whether an argument is words, and not a message: a literal of several words, or an f-string with one."""
    if isinstance(text, ast.Constant):
        return isinstance(text.value, str) and re.search(r"[a-z] [a-z]", text.value) is not None
    if isinstance(text, ast.JoinedStr):
        return any(
            isinstance(part, ast.Constant) and re.search(r"[a-z]{2} | [a-z]{2}", part.value) for part in text.values
        )
    return any(
        is_plain(part)
        for part in ast.iter_child_nodes(text)
        if isinstance(text, ast.IfExp | ast.BinOp) and isinstance(part, ast.expr)
    )


def test_a_command_in_a_message_can_be_copied() -> None:
    """This program and Prefect's are in the project's environment, from which `uv run` starts them."""
    program = f"musicgen-flows (?:{'|'.join(COMMANDS)})|prefect (?:server|worker|work-pool|variable) [a-z]|hf download"
    texts = [*messages(), *(str(entry.string) for code in LANGUAGES[1:] for entry in catalogue(code))]
    mentioned = "musicgen-flows up (?:runs already|はすでに)"
    bare = rf"(?<!uv run )(?<![\w-])(?!{mentioned})(?:{program})\b"
    assert [text for text in texts if re.search(bare, text)] == []


@pytest.mark.parametrize("code", LANGUAGES[1:])
def test_each_message_is_translated_once(code: str) -> None:
    text = (ROOT / "musicgen_core" / "translations" / f"{code}.po").read_text(encoding="utf-8")
    entries = Counter(re.findall(r'^msgid (".*"(?:\n".*")*)', text, re.MULTILINE))
    assert [message for message, number in entries.items() if number > 1] == []


@pytest.mark.parametrize("code", LANGUAGES[1:])
def test_a_translation_has_the_placeholders_of_its_message(code: str) -> None:
    for entry in catalogue(code):
        if entry.id:
            assert placeholders(str(entry.string)) == placeholders(str(entry.id)), entry.id


def test_japanese_terms_are_those_of_the_readme() -> None:
    """A run is 実行 and its directory 実行ディレクトリ; 「コード」 would be read as chords, and codes are トークン."""
    translations = [str(entry.string) for entry in catalogue("ja")]
    texts = [*translations, (ROOT / "README.ja.md").read_text(encoding="utf-8")]
    others = "(?<![ァ-ヶー])ラン(?![ァ-ヶー])|ランディレクトリ|学習のディレクトリ|ワーカ(?!ー)"
    codes = "(?<![ァ-ヶー字了])コード(?!ブック)"
    assert [found for text in texts for found in re.findall(f"{others}|{codes}", text)] == []


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'

"""docs/from-the-notebook.md and its table in the Japanese README: every test they name is there, in both the same."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def named_in(page: str) -> list[tuple[Path, str]]:
    rows = re.findall(r"\| \[[\w./]+\]\(([\w./]+)\) `(test_\w+)` \|$", (ROOT / page).read_text(encoding="utf-8"), re.M)
    return [((ROOT / page).parent.joinpath(file).resolve(), name) for file, name in rows]


def test_every_feature_of_the_notebook_has_a_test_that_exists() -> None:
    named = named_in("docs/from-the-notebook.md")
    assert len(named) > 20
    assert [name for file, name in named if f"def {name}(" not in file.read_text(encoding="utf-8")] == []


def test_the_japanese_table_names_the_same_tests_in_order() -> None:
    assert named_in("README.ja.md") == named_in("docs/from-the-notebook.md")

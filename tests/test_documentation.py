"""The documentation's commands and links are valid, and the Japanese README matches the English one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from deployments.cli import COMMANDS
from deployments.options import parse

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "deployments").rglob("*.md")])


def commands(page: str) -> list[str]:
    """Return the commands in a page's shell blocks, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+# .*", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_are_right_usage(page: Path) -> None:
    lines = "\n".join(commands(str(page.relative_to(ROOT)))).replace("\\\n", " ").splitlines()
    for line in lines:
        before, program, arguments = line.partition("musicgen-flows ")
        if program and before in ("", "uv run ", "pip install uv && uv run "):
            given = shlex.split(arguments)
            assert given == ["--install-completion"] or parse(COMMANDS, given) is not None, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_places_that_a_page_links_to_are_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


def test_both_readmes_have_equal_commands_pictures_and_settings() -> None:
    english, japanese = commands("README.md"), commands("README.ja.md")
    assert japanese == english
    options = [set(re.findall(r"`(--[a-z-]+)", (ROOT / page).read_text(encoding="utf-8"))) for page in READMES]
    assert options[0] == options[1]
    media = re.compile(r"docs/(?:screenshots|listening)/[\w.-]+")
    pictures = [media.findall((ROOT / page).read_text(encoding="utf-8")) for page in READMES]
    assert pictures[0] == pictures[1]


READMES = ("README.md", "README.ja.md")

"""Untrusted names and texts in everything that a run shows in the Prefect UI."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from musicgen_core.data.shards import Rejected, ShardReport
from musicgen_core.generation.request import Rendered
from musicgen_core.tracking import Wandb
from tasks.archives_log import TOKENIZING, ArchivesLog
from tasks.artifacts import Artifacts, markdown_table
from tasks.rendering_log import RenderingLog
from tasks.summary import rendered_section, tokenized_section
from tasks.training_log import TrainingLog
from tasks.training_page import samples_page, wandb_line
from tests.hostile import ALL, LONG, TEXTS, TRACKER, is_inert_markdown, is_inert_terminal_text


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Return the list that receives type, data and description of each artifact."""
    found: list[tuple[str, str, str]] = []

    def publish(_self: Artifacts, _key: str, content: Any, data: Any) -> bool:
        found.append((content.type, data if isinstance(data, str) else str(data), content.description))
        return True

    monkeypatch.setattr(Artifacts, "_publish", publish)
    return found


def check(published: list[tuple[str, str, str]]) -> None:
    for kind, data, description in published:
        texts = [data]
        if kind == "table":
            texts = [value for row in json.loads(data) for value in row.values() if isinstance(value, str)]
        for text in [*texts, description]:
            without_players = re.sub(r"^<audio controls src=[^>]*>\n.*\n</audio>$", "", text, flags=re.MULTILINE)
            assert is_inert_markdown(without_players) and is_inert_terminal_text(without_players)


@pytest.mark.parametrize("text", TEXTS)
def test_tables_and_descriptions_of_tokenizing_are_inert(
    text: str, published: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    run, artifacts = Wandb(tmp_path, "id", text, "tokenize", {}), Artifacts()
    log = ArchivesLog(TOKENIZING, run, [text], lambda update: None, artifacts)
    log.end(text, ShardReport(text, 1, "f", "c", 7, 3600.0, [Rejected(text, text)]))
    log.show()
    log.end(text, None, problem=text)
    log.show()
    artifacts.close(120)
    assert [kind for kind, _, _ in published].count("table") >= 1
    check(published)


@pytest.mark.parametrize("text", TEXTS)
def test_pages_of_a_rendering_are_inert(
    text: str, published: list[tuple[str, str, str]], demo_wav: Callable[[Path], Path], tmp_path: Path
) -> None:
    artifacts = Artifacts()
    log = RenderingLog(text, 1, 1, artifacts)
    log.add(Rendered(str(demo_wav(tmp_path)), text + LONG, 0, 0, 0.1, True))
    log.show()
    artifacts.close(120)
    assert {"table", "markdown", "progress"} == {kind for kind, _, _ in published}
    check(published)
    assert all(LONG not in data + description for _, data, description in published)


@pytest.mark.parametrize("text", TEXTS)
def test_the_training_page_is_inert(text: str, published: list[tuple[str, str, str]], tmp_path: Path) -> None:
    artifacts = Artifacts()
    log = TrainingLog(text, str(tmp_path), artifacts)
    log.stop(text, text)
    artifacts.close(120)
    check(published)


@pytest.mark.parametrize("text", TEXTS)
def test_the_summary_is_inert(text: str) -> None:
    report = ShardReport(text, 1, "f", "c", 7, 3600.0, [Rejected(text, text)])
    sections = [
        tokenized_section(f"/{text}", [report], {text: text}, [text]),
        rendered_section([Rendered(f"/a/{text}/x.wav", text + LONG, 0, 0, 1.0, True)]),
    ]
    for section in sections:
        assert is_inert_markdown(section) and is_inert_terminal_text(section)
        assert LONG not in section


def test_samples_of_a_strangers_run_directory_are_inert(demo_wav: Callable[[Path], Path], tmp_path: Path) -> None:
    wav = demo_wav(tmp_path).rename(tmp_path / "epoch_000_00.wav")
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": [ALL + LONG]}))
    page = samples_page([str(wav)])
    assert "<audio controls" in page
    assert is_inert_markdown(page.partition("<audio")[0]) and LONG not in page


@pytest.mark.parametrize("url", [f"javascript:alert(1)//{TRACKER}", f"https://wandb.ai) ![]({TRACKER}"])
def test_a_strangers_address_of_wandb_is_no_link(url: str, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run-url").write_text(url)
    assert is_inert_markdown(wandb_line(UPath(tmp_path)))


def test_the_check_finds_a_table_whose_cells_are_live() -> None:
    assert not is_inert_markdown(markdown_table(("a",), [(f"![]({TRACKER})",)]))

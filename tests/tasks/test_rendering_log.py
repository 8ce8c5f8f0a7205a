"""The page of a rendering: how often it is sent, and that it finally has every piece."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from musicgen_core.generation.request import Rendered
from musicgen_core.stages import Stage
from tasks import rendering_log
from tasks.artifacts import Artifacts
from tasks.rendering_log import RenderingLog


class Recorded(Artifacts):
    """Records artifacts instead of publishing them."""

    def __init__(self) -> None:
        self.pages: list[tuple[str, str]] = []
        self.lines: list[str] = []

    def progress(self, key: str, done: int, total: int, description: str) -> None:
        self.lines.append(description)

    def table(self, *_: object, **__: object) -> None: ...

    def markdown(self, key: str, make: Callable[[], str], description: str) -> None:
        self.pages.append((make(), description))


@pytest.fixture
def pieces(demo_wav: Callable[[Path], Path], tmp_path: Path) -> list[Rendered]:
    wav = str(demo_wav(tmp_path))
    return [Rendered(wav, f"prompt {number}", number, 0, 0.1, True) for number in range(20)]


def test_the_page_is_not_sent_again_for_every_piece(pieces: list[Rendered], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering_log, "PAGE_EVERY_SECONDS", 3600.0)
    artifacts = Recorded()
    log = RenderingLog("music", len(pieces), len(pieces), artifacts)
    for piece in pieces:
        log.add(piece)
    assert [description for _, description in artifacts.pages] == ["The music of all prompts: 1 of 20 samples"]
    log.show()
    assert len(artifacts.pages) == 2 and all(f"prompt {number}" in artifacts.pages[1][0] for number in range(20))


def test_a_stopped_rendering_shows_its_finished_pieces(pieces: list[Rendered], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering_log, "PAGE_EVERY_SECONDS", 3600.0)
    artifacts = Recorded()
    log = RenderingLog("music", len(pieces), len(pieces), artifacts)
    log.stop()
    assert artifacts.pages == []
    for piece in pieces[:5]:
        log.add(piece)
    log.stop()
    assert artifacts.pages[-1][1] == "The music of all prompts: 5 of 20 samples"


def test_the_page_names_only_the_current_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering_log, "SHOW_EVERY_SECONDS", 3600.0)
    artifacts = Recorded()
    log = RenderingLog("music", 2, 2, artifacts)
    log.begin_stage(Stage("reading the model"))
    for done in (1, 2):
        log.hear(done, 4, "sample 1 of 2")
    log.begin_stage(Stage("turning the codes into sound"))
    for done in (3, 4):
        log.hear(done, 4, "sample 2 of 2")
    assert artifacts.lines == [
        "Rendering 2 prompts",
        "reading the model",
        "Rendering sample 1 of 2",
        "turning the codes into sound",
        "Rendering sample 2 of 2",
    ]

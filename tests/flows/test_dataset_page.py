"""Captioning and tokenizing write a page of the clips, and show it in the Prefect UI."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.client.schemas.objects import State

from flows.caption_archives import caption_archives
from flows.tokenize_archives import tokenize_archives
from musicgen_core.data.duplicate_clips import ClipName
from musicgen_core.errors import TokensError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def archives(demo_archives: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_archives, tmp_path / "archives"))


def caption(archives: Path) -> State[Any]:
    return caption_archives(archives=str(archives), device="cpu", return_state=True)


def tokenize(archives: Path, tokens: Path, **parameters: Any) -> State[Any]:
    return tokenize_archives(
        archives=str(archives), tokens=str(tokens), model="debug", device="cpu", return_state=True, **parameters
    )


def artifact_of(state: State[Any], key: str) -> str:
    of_run = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]), flow_run_id=of_run)
        [found] = client.read_artifacts(artifact_filter=wanted)
    return str(found.data)


def test_captioned_clips_have_a_page_beside_the_metadata(archives: Path) -> None:
    lines = (archives / "metadata.jsonl").read_text().splitlines()
    (archives / "metadata.jsonl").write_text(
        "\n".join([json.dumps(json.loads(lines[0]) | {"speech": 0.8}), *lines[1:]])
    )
    state = caption(archives)
    page = (archives / "dataset.html").read_text()
    assert state.result().page == str(archives / "dataset.html")
    path = json.loads(lines[0])["path"]
    assert path in page and "speech: 80 % of its time" in page and "data:audio/mpeg" in page
    assert "<dd>16</dd>" in page and "<dd>1 clip</dd>" in page  # one is broken
    assert "Near duplicates" not in page  # there are no tokens yet
    shown = artifact_of(state, "dataset")
    assert "dataset.html" in shown and "| speech | 1 |" in shown and path in shown
    assert "dataset.html" in artifact_of(state, "summary")

    (archives / "dataset.html").unlink()
    assert caption(archives).is_completed()
    assert (archives / "dataset.html").read_text() == page


def test_tokenized_clips_have_a_page_with_near_duplicates(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens"
    first, *_, last = [json.loads(line)["path"] for line in (archives / "metadata.jsonl").read_text().splitlines()]
    cluster = [ClipName("archive_batch_0001", first), ClipName("archive_batch_0002", last)]
    monkeypatch.setattr("musicgen_core.data.duplicate_clips.near_duplicates_in", lambda *_, **__: [cluster])
    state = tokenize(archives, tokens)
    page = (tokens / "dataset.html").read_text()
    assert state.result().page == str(tokens / "dataset.html")
    assert f"near duplicate of {last} in archive_batch_0002.zip" in page and page.count("<audio") == 2
    assert "| near duplicates (clusters) | 1 |" in artifact_of(state, "dataset")


def test_a_page_without_near_duplicates_is_written_if_they_cannot_be_found(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TokensError("the shard other.parquet was tokenized with another model", "Tokenize again")

    monkeypatch.setattr("musicgen_core.data.duplicate_clips.near_duplicates_in", fail)
    state = tokenize(archives, tmp_path / "tokens")
    page = (tmp_path / "tokens" / "dataset.html").read_text()
    assert state.result().page and "Near duplicates" not in page and "<dd>16</dd>" in page
    assert "near duplicates are missing" in caplog.text and "other.parquet" in caplog.text


def test_a_page_of_somebody_else_is_kept(archives: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "dataset.html").write_text("my notes")
    state = tokenize(archives, tokens)
    assert state.is_completed() and state.result().page == ""
    assert (tokens / "dataset.html").read_text() == "my notes"


def test_a_page_that_cannot_be_written_fails_no_run(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("musicgen_core.overview.page.write_page", fail)
    state = tokenize(archives, tmp_path / "tokens")
    assert state.is_completed() and state.result().page == ""

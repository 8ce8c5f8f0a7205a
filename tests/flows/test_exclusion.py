"""`tokenize-archives` leaves clips out by the metadata, and knows which of its results that concerns."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import State

from flows.tokenize_archives import TokenizeResult, tokenize_archives
from musicgen_core.codec import Codec
from musicgen_core.data.shards import read_rows
from musicgen_core.demo_data import make_demo_archives
from musicgen_core.errors import MetadataError

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def archives(demo_archives: Path, tmp_path: Path) -> Path:
    """Two archives of 8 clips each, the first of which is silent and the second speech by their metadata."""
    copied = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    lines = (copied / "metadata.jsonl").read_text().splitlines()
    write(
        copied, [{**json.loads(line), "silence": 0.0, "speech": 0.1} for line in lines], (0, "silence"), (1, "speech")
    )
    return copied


def write(archives: Path, entries: list[dict[str, Any]], *high: tuple[int, str]) -> None:
    for number, name in high:
        entries[number] = entries[number] | {name: 0.975}
    (archives / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))


def run(archives: Path, tokens: Path, *exclude: str) -> State[Any]:
    return tokenize_archives(
        archives=str(archives), tokens=str(tokens), model="debug", device="cpu", exclude=exclude, return_state=True
    )


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of clips in the batches that were encoded."""
    batches: list[int] = []
    start = Codec.start

    def counting(self: Codec, clips: Any, *arguments: Any) -> Any:
        batches.append(len(clips))
        return start(self, clips, *arguments)

    monkeypatch.setattr(Codec, "start", counting)
    return batches


def test_excluded_clips_are_rejections_and_come_back_when_corrected(
    archives: Path, tmp_path: Path, encoded: list[int]
) -> None:
    tokens = tmp_path / "tokens"
    result: TokenizeResult = run(archives, tokens, "silent", "speech").result()
    first, second = result.reports
    assert [each.reason for each in first.rejected] == ["silent: 97.5 % of its time", "speech: 97.5 % of its time"]
    assert (first.clips, second.clips) == (6, 8) and sum(encoded) == 14
    report = json.loads((tokens / "archive_batch_0001.json").read_text())
    assert [each["reason"] for each in report["rejected"]] == [each.reason for each in first.rejected]
    assert any(
        "a usable silence in the metadata, 1 of 17 clips: not left out as silent" in remark for remark in result.remarks
    )  # a broken one

    encoded.clear()
    again = run(archives, tokens, "silent", "speech")
    assert again.result().reports == result.reports and encoded == []

    entries = [json.loads(line) for line in (archives / "metadata.jsonl").read_text().splitlines()]
    write(archives, [*entries[:1], entries[1] | {"speech": 0}, *entries[2:]])
    corrected: TokenizeResult = run(archives, tokens, "silent", "speech").result()
    assert corrected.reports[0].clips == 7 and sum(encoded) == 7  # the other archive is kept
    assert entries[1]["path"] in [row.clip for row in read_rows(tokens / "archive_batch_0001.parquet")]


def test_exclusions_leave_a_complete_shard_without_encoding(archives: Path, tmp_path: Path, encoded: list[int]) -> None:
    tokens = tmp_path / "tokens"
    whole: TokenizeResult = run(archives, tokens).result()
    assert sum(encoded) == 16
    assert [each.clips for each in run(archives, tokens, "silent").result().reports] == [7, 8]
    assert sum(encoded) == 16
    assert run(archives, tokens).result().reports == whole.reports  # although its result is persisted
    assert sum(encoded) == 24


def test_near_duplicates_are_removed_after_all_archives_are_tokenized(
    tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUSICGEN_TOKENS_CACHE", str(tmp_path / "cache"))
    songs = tmp_path / "songs"
    make_demo_archives(songs, archives=2, clips=2, seconds=6.0)
    with zipfile.ZipFile(songs / "archive_batch_0001.zip") as first:
        song = first.namelist()[0]
        copied = first.read(song)
    with zipfile.ZipFile(songs / "archive_batch_0002.zip", "a") as second:
        second.writestr("audio/copied.wav", copied)
    tokens = tmp_path / "tokens"
    state = run(songs, tokens, "duplicate")
    result: TokenizeResult = state.result()
    assert [report.clips for report in result.reports] == [2, 2] and sum(encoded) == 5
    with get_client(sync_client=True) as client:
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["tokenized-archives", "summary"]))
        )
    shown = {each.key: str(each.data) for each in artifacts if each.flow_run_id == state.state_details.flow_run_id}
    assert [(row["clips"], row["rejected"]) for row in json.loads(shown["tokenized-archives"])] == [
        (4, 2),
        (2, 0),
        (2, 2),
    ]
    assert "Clips: 4" in shown["summary"] and "Rejected: 2." in shown["summary"]
    [copy] = [each for each in result.reports[1].rejected if each.clip == "audio/copied.wav"]
    assert copy.reason == f"near duplicate of archive_batch_0001: {song}"

    encoded.clear()
    before = (tokens / "archive_batch_0002.parquet").read_bytes()
    assert run(songs, tokens, "duplicate").result().reports == result.reports and encoded == []
    assert (tokens / "archive_batch_0002.parquet").read_bytes() == before
    assert [report.clips for report in run(songs, tokens).result().reports] == [2, 3] and sum(encoded) == 3
    page = (tokens / "dataset.html").read_text()
    assert song in page and "near duplicate of audio/copied.wav in archive_batch_0002.zip" in page

    assert run(songs, tokens, "duplicate").result().reports == result.reports
    for path in (songs / "archive_batch_0001.zip", *tokens.glob("archive_batch_0001.*")):
        path.unlink()
    [alone] = run(songs, tokens, "duplicate").result().reports  # although its result is persisted
    assert alone.clips == 3 and [each.clip for each in alone.rejected] == ["audio/broken.wav"]


def test_exclusions_without_measurements_are_refused_before_encoding(archives: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MetadataError, match=r"exclude clipped needs measurements .* no clip has clipping\. Run .*caption"
    ):
        run(archives, tmp_path / "tokens", "silent", "clipped").result()
    (archives / "metadata.jsonl").unlink()
    with pytest.raises(MetadataError, match=r"exclude silent needs measurements .* there is no metadata file"):
        run(archives, tmp_path / "tokens", "silent").result()

"""The flow `caption-archives` with a real Prefect server: archives without descriptions get a metadata.jsonl."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import State

from flows import caption_archives as flow_module
from flows.caption_archives import caption_archives
from flows.tokenize_archives import tokenize_archives
from musicgen_core.data.archive import _clip_names as clip_names_in_archive
from musicgen_core.data.shards import read_rows
from tasks.captioning import CaptionResult
from tests.toy_clap import make_clap

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def archives(demo_archives: Path, tmp_path: Path) -> Path:
    """Two archives of 8 clips each, and a broken clip, without metadata."""
    copied = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    (copied / "metadata.jsonl").unlink()
    return copied


def run(archives: Path, **parameters: Any) -> State[Any]:
    return caption_archives(archives=str(archives), device="cpu", return_state=True, **parameters)


def entries_in(archives: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (archives / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_captions_are_written_corrected_kept_and_tokenized(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result: CaptionResult = run(archives).result()
    assert (result.archives, result.new, result.kept + result.missing) == (2, 16 - result.missing, result.missing)
    assert len(result.rejected) == 1 and "audio/broken.wav" in result.rejected[0]
    entries = entries_in(archives)
    assert len(entries) == 16 and [entry["archive"] for entry in entries] == [
        *["archive_batch_0001.zip"] * 8,
        *["archive_batch_0002.zip"] * 8,
    ]
    assert all(entry["loudness"] is not None and "speech" in entry["confidence"] for entry in entries)

    lines = (archives / "metadata.jsonl").read_text().splitlines()
    corrected = json.dumps(entries[3] | {"description": "corrected by hand", "tags": ["piano"]})
    (archives / "metadata.jsonl").write_text("\n".join([*lines[:3], corrected, *lines[4:]]) + "\n")
    assert run(archives).is_completed()
    assert (archives / "metadata.jsonl").read_text().splitlines() == [*lines[:3], corrected, *lines[4:]]

    tokens = tmp_path / "tokens"
    state: Any = tokenize_archives(
        archives=str(archives), tokens=str(tokens), model="debug", device="cpu", return_state=True
    )
    assert state.is_completed()
    rows = list(read_rows(tokens / "archive_batch_0001.parquet"))
    assert rows[3].description == "corrected by hand" and rows[3].fields["instrument"] == "piano"
    assert [row.description for row in rows[:3]] == [entry.get("description") for entry in entries[:3]]


def test_corrections_that_are_made_during_a_run_are_kept(archives: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = flow_module.run_on_archives

    def corrected_meanwhile(*given: Any) -> Any:
        measured = measure(*given)
        line = json.dumps({"path": "audio/theremin_01_000.wav", "description": "written meanwhile"})
        (archives / "metadata.jsonl").write_text(line + "\n")
        return measured

    monkeypatch.setattr(flow_module, "run_on_archives", corrected_meanwhile)
    assert run(archives).is_completed()
    described = {entry["path"]: entry.get("description") for entry in entries_in(archives)}
    assert len(described) == 16 and described["audio/theremin_01_000.wav"] == "written meanwhile"


def test_broken_lines_are_reported_and_kept(archives: Path) -> None:
    (archives / "metadata.jsonl").write_text('{"path": "audio/x.wav", "tempo": "fast"}\n{broken\n[]\n')
    result: CaptionResult = run(archives).result()
    assert any("2 lines can't be used" in remark and "2, 3" in remark for remark in result.remarks)
    assert any('line 1 (audio/x.wav): tempo is "fast", and should be a number' in remark for remark in result.remarks)
    assert (archives / "metadata.jsonl").read_text().splitlines()[-2:] == ["{broken", "[]"]


def test_archives_that_fail_are_named_and_the_others_captioned(archives: Path) -> None:
    whole = (archives / "archive_batch_0002.zip").read_bytes()
    (archives / "archive_batch_0002.zip").write_bytes(whole[: len(whole) // 2])
    failed = run(archives)
    assert failed.is_failed()
    assert f"1 of 2 archives failed: {archives}/archive_batch_0002.zip can't be read" in str(failed.message)
    assert len(entries_in(archives)) == 8
    (archives / "archive_batch_0002.zip").write_bytes(whole)
    assert run(archives).is_completed()
    assert len(entries_in(archives)) == 16


def test_with_only_missing_no_archive_is_measured_whose_clips_are_described(
    demo_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    before = (copied / "metadata.jsonl").read_bytes()
    (copied / "archive_batch_0002.zip").unlink()  # it holds the broken clip, which has no description
    monkeypatch.setattr(flow_module, "run_on_archives", lambda *_: pytest.fail("it was measured"))
    result: CaptionResult = run(copied, only_missing=True).result()
    assert (result.new, result.kept) == (0, 8)
    assert (copied / "metadata.jsonl").read_bytes() == before


def test_clips_are_tagged_by_clap_with_labels_of_a_file(
    demo_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgen_core.captioning.clap.LEAST_RATIO", 0.0)  # random weights prefer no label
    copied = tmp_path / "archives"
    copied.mkdir()
    shutil.copy(demo_archives / "archive_batch_0001.zip", copied)
    (tmp_path / "clap").mkdir()
    weights = make_clap(tmp_path / "clap", ["koto", "shamisen", "enka", "rock"])
    labels = tmp_path / "labels.yaml"
    labels.write_text("instruments: [koto, shamisen]\n")
    clap = {"tagger": "clap", "tagger_model": str(weights), "tagger_labels": str(labels)}
    result: CaptionResult = run(copied, limit=2, **clap).result()
    assert result.new == 2
    before = entries_in(copied)
    for entry in before:
        assert sorted(entry["instruments"]) == ["koto", "shamisen"] and set(entry["instruments"]) <= set(entry["tags"])
        assert "koto" in entry["description"] and "shamisen" in entry["description"]
        assert "CLAP clap sha256:" in entry["captioned_by"] and "musicnn" not in entry["captioned_by"]
    labels.write_text("instruments: [koto, taiko]\n")
    run(copied, limit=2, overwrite=True, **clap).result()  # other labels have results of their own
    for entry, old in zip(entries_in(copied), before, strict=True):
        assert sorted(entry["instruments"]) == ["koto", "taiko"] and entry["captioned_by"] != old["captioned_by"]
    run(copied, limit=2, overwrite=True).result()
    for entry in entries_in(copied):
        assert "instruments" not in entry and "musicnn" in entry["captioned_by"]


def test_wrong_labels_are_refused_before_anything_is_measured(archives: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.yaml"
    labels.write_text("instrument: [koto]\nmood: []\n")
    state = run(archives, tagger="clap", tagger_labels=str(labels))
    assert state.is_failed() and "have 2 problems: mood: should be a list of two or more labels" in str(state.message)
    assert not (archives / "metadata.jsonl").exists()


def test_clips_that_a_persisted_result_lacks_are_measured(
    demo_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version measured only wavs."""
    with zipfile.ZipFile(demo_archives / "archive_batch_0001.zip") as source:
        names = source.namelist()[:2]
        with zipfile.ZipFile(tmp_path / "archive_batch_0001.zip", "w") as archive:
            for name, target in zip(names, ("a.wav", "b.flac"), strict=True):
                archive.writestr(target, source.read(name))
    with monkeypatch.context() as patch:
        patch.setattr("musicgen_core.data.zip_archive.is_clip", lambda name: name.endswith(".wav"))
        assert run(tmp_path).is_completed()
    assert [entry["path"] for entry in entries_in(tmp_path)] == ["a.wav"]
    clip_names_in_archive.cache_clear()
    assert run(tmp_path).is_completed()
    assert [entry["path"] for entry in entries_in(tmp_path)] == ["a.wav", "b.flac"]

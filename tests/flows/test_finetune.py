from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
from prefect.client.schemas.objects import State

from flows.finetune import FinetuneResult, finetune
from flows.generate_music import generate_music
from flows.train_lora import train_lora
from musicgen_core.data.shards import read_rows
from musicgen_core.errors import ArchiveError, ConfigError, MetadataError

pytestmark = pytest.mark.usefixtures("prefect_server")
QUICK: dict[str, Any] = {
    "model": "debug",
    "device": "cpu",
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "segment_seconds": 1.0,
    "num_epochs": 1,
}


def run(archives: Path, folder: Path, **parameters: Any) -> State[Any]:
    return finetune(
        archives=str(archives),
        tokens=str(folder / "tokens"),
        run_dir=str(folder / "run"),
        output=str(folder / "music"),
        prompts=["calm plucked strings", "energetic drums"],
        duration=0.5,
        return_state=True,
        **(QUICK | parameters),
    )


def test_archives_become_an_adapter_and_music_in_one_run(finetuned: tuple[Path, State[Any]]) -> None:
    folder, state = finetuned
    result: FinetuneResult = state.result()
    made = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    adapters = ("best_lora", "final_lora", "latest_lora", "lora_epoch_1")
    assert made == {
        *(f"tokens/archive_batch_000{n}.{kind}" for n in (1, 2) for kind in ("json", "parquet")),
        "tokens/dataset.html",
        *(f"runs/jazz/lora_weights/{name}.pt" for name in adapters),
        *(f"runs/jazz/full_models/{name}.pt" for name in ("best_model", "final_model", "checkpoint_epoch_1")),
        *(f"runs/jazz/{name}" for name in ("latest.pt", "config.json", "metrics.jsonl")),
        *(f"runs/jazz/{name}.png" for name in ("loss", "learning_rate", "perplexity")),
        *(f"music/generated_00{n}.{kind}" for n in (0, 1) for kind in ("wav", "png", "json")),
        *(f"runs/jazz/evaluation/{name}" for name in ("evaluation.json", "report.html")),
        "music/index.html",
    }
    assert result.trained.steps == 4  # 15 training clips in micro-batches of 4
    assert len(result.rendered) == 2
    for piece in result.rendered:
        info = soundfile.info(piece.wav)
        assert (info.samplerate, info.frames, info.channels) == (32_000, 16_000, 1)


@pytest.mark.parametrize("captions", ["auto", "none"])
def test_clips_without_descriptions_are_described_first_unless_asked_not_to(
    demo_archives: Path, tmp_path: Path, captions: str
) -> None:
    archives = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    (archives / "metadata.jsonl").unlink()
    state = run(archives, tmp_path, captions=captions, evaluate=False, max_steps=1)
    assert state.is_completed()
    rows = list(read_rows(tmp_path / "tokens" / "archive_batch_0001.parquet"))
    assert (archives / "metadata.jsonl").exists() == (captions == "auto")
    assert (state.result().captioned is not None) == (captions == "auto")
    assert any(row.description for row in rows) == any(row.fields for row in rows) == (captions == "auto")


def test_clips_are_measured_first_where_some_are_to_be_left_out(demo_archives: Path, tmp_path: Path) -> None:
    archives = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    first, *others = (archives / "metadata.jsonl").read_text().splitlines()
    spoken = json.loads(first) | {"speech": 1.0}
    (archives / "metadata.jsonl").write_text("\n".join([json.dumps(spoken), *others]))
    state = run(archives, tmp_path, exclude=["speech"], evaluate=False, max_steps=1)
    assert state.is_completed()
    entries = [json.loads(line) for line in (archives / "metadata.jsonl").read_text().splitlines()]
    assert all("silence" in entry for entry in entries) and entries[0]["description"] == spoken["description"]
    report = state.result().tokenized.reports[0]
    assert [each.reason for each in report.rejected] == ["speech: 100 % of its time"] and report.clips == 7


def test_an_archive_that_cannot_be_captioned_fails_with_its_own_reason(tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "a.zip").write_bytes(b"not an archive")
    with pytest.raises(ArchiveError, match=r"a\.zip can't be read"):
        run(tmp_path / "archives", tmp_path).result()
    assert not (tmp_path / "archives" / "metadata.jsonl").exists()


def test_metadata_that_are_given_and_missing_are_an_error(demo_archives: Path, tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match=r"typo\.jsonl can't be read"):
        run(demo_archives, tmp_path, metadata=str(tmp_path / "typo.jsonl")).result()
    assert not (tmp_path / "typo.jsonl").exists()


def test_clips_that_a_template_describes_are_not_captioned(demo_archives: Path, tmp_path: Path) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    shutil.copy(demo_archives / "archive_batch_0001.zip", archives)
    lines = (demo_archives / "metadata.jsonl").read_text().splitlines()
    entries = [{"path": json.loads(line)["path"], "genre": "dub", "bpm": 70} for line in lines]
    (archives / "metadata.jsonl").write_text("\n".join(map(json.dumps, entries)))
    before = (archives / "metadata.jsonl").read_bytes()
    template = {"caption_template": "{genre}, {bpm} bpm"}
    assert run(archives, tmp_path, evaluate=False, max_steps=1, **template).is_completed()
    assert (archives / "metadata.jsonl").read_bytes() == before
    rows = list(read_rows(tmp_path / "tokens" / "archive_batch_0001.parquet"))
    assert {row.description for row in rows} == {"dub, 70 bpm"}


@pytest.mark.parametrize("decision", ["stop", "continue"])
def test_a_failed_archive_stops_the_run_or_is_skipped_as_chosen(
    demo_archives: Path, tmp_path: Path, decision: str
) -> None:
    archives = Path(shutil.copytree(demo_archives, tmp_path / "archives"))
    (archives / "archive_batch_0002.zip").write_bytes(b"not an archive")
    state = run(archives, tmp_path, on_failed_archives=decision)
    if decision == "stop":
        with pytest.raises(ArchiveError, match="archive_batch_0002"):
            state.result()
        assert not (tmp_path / "run").exists()
    else:
        result: FinetuneResult = state.result()
        assert list(result.tokenized.failed) == [str(archives / "archive_batch_0002.zip")]
        assert len(result.rendered) == 2


def test_a_setting_out_of_range_is_refused_before_anything_runs(tmp_path: Path) -> None:
    state = train_lora(tokens=str(tmp_path), run_dir=str(tmp_path), lora_r=0, return_state=True)
    assert state.is_failed()
    assert "lora_r" in str(state.message)


def test_options_of_generating_reach_the_engine(tmp_path: Path) -> None:
    state = generate_music(
        model="debug", output=str(tmp_path), device="cpu", duration=0.1, cache_bits=8, return_state=True
    )
    assert state.is_failed()
    assert "Leave out cache_bits" in str(state.message)


def test_without_a_location_the_error_names_the_variable(tmp_path: Path) -> None:
    state = generate_music(model="debug", return_state=True)
    with pytest.raises(ConfigError, match="uv run prefect variable set musicgen_output"):
        state.result()

from __future__ import annotations

import errno
import json
import logging
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State, TaskRun
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry

from flows.tokenize_archives import TokenizeResult, tokenize_archives
from musicgen_core import storage
from musicgen_core.data.archive import ArchiveFile
from musicgen_core.data.shards import ShardReport, read_rows, shard_paths
from musicgen_core.errors import ArchiveError, ConfigError, MetadataError
from musicgen_core.tokenizing import Tokenizer
from tasks.tokenizing import tokenize_archive

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def archives(demo_archives: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_archives, tmp_path / "archives"))


def run(archives: Path, tokens: Path, **parameters: Any) -> State[Any]:
    return tokenize_archives(
        archives=str(archives), tokens=str(tokens), model="debug", device="cpu", return_state=True, **parameters
    )


def task_states(flow_run_id: UUID | None, count: int) -> list[tuple[str, str]]:
    """Return the sorted names and final states of a flow run's task runs.

    The server records them with a delay: waits for `count` of them to end.
    """
    this_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + 120
    with get_client(sync_client=True) as client:
        while True:
            runs: list[TaskRun] = client.read_task_runs(flow_run_filter=this_run)
            ended = [run for run in runs if run.state is not None and run.state.is_final()]
            if len(ended) == len(runs) >= count or time.monotonic() > deadline:
                return sorted((run.name, run.state_name or "") for run in runs)
            time.sleep(0.1)


def two_states(state: State[Any]) -> list[str]:
    """Return the final states of both archives' task runs."""
    (first, one), (second, two) = task_states(state.state_details.flow_run_id, 2)
    assert (first, second) == ("tokenize-archive_batch_0001", "tokenize-archive_batch_0002")
    return [one, two]


def test_a_task_run_is_named_after_its_archive(archives: Path, tmp_path: Path) -> None:
    state = run(archives, tmp_path / "tokens")
    assert state.is_completed()
    assert two_states(state) == ["Completed", "Completed"]
    result: TokenizeResult = state.result()
    assert [(report.clips, len(report.rejected)) for report in result.reports] == [(8, 0), (8, 1)]
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        "archive_batch_0001.json",
        "archive_batch_0001.parquet",
        "archive_batch_0002.json",
        "archive_batch_0002.parquet",
        "dataset.html",
    ]


def test_a_second_run_tokenizes_only_the_failed_archive(archives: Path, tmp_path: Path) -> None:
    good = (archives / "archive_batch_0002.zip").read_bytes()
    (archives / "archive_batch_0002.zip").write_bytes(good[: len(good) // 2])
    failed = run(archives, tmp_path / "tokens")
    assert failed.is_failed()
    assert f"1 of 2 archives failed: {archives}/archive_batch_0002.zip can't be read" in str(failed.message)
    assert not (tmp_path / "tokens" / "archive_batch_0002.json").exists()

    (archives / "archive_batch_0002.zip").write_bytes(good)
    again = run(archives, tmp_path / "tokens")
    assert again.is_completed()
    assert two_states(again) == ["Cached", "Completed"]
    assert "1 archive tokenized before: not encoded again" in again.result().remarks


def test_a_deleted_shard_is_regenerated_despite_its_cached_result(archives: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    first: TokenizeResult = run(archives, tokens).result()
    (tokens / "archive_batch_0001.parquet").unlink()
    state = run(archives, tokens)
    assert state.is_completed()
    assert state.result().reports == first.reports
    assert (tokens / "archive_batch_0001.parquet").exists()


def test_a_cached_result_that_lacks_clips_of_other_formats_is_redone(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier version read only wavs."""
    path, tokens = archives / "archive_batch_0001.zip", tmp_path / "tokens"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("audio/more.flac", archive.read(archive.namelist()[0]))
    with monkeypatch.context() as patch:
        patch.setattr("musicgen_core.data.zip_archive.is_clip", lambda name: name.endswith(".wav"))
        patch.setattr("musicgen_core.tokenizing.CLIP_SUFFIXES", (".wav",))
        assert [report.clips for report in run(archives, tokens).result().reports] == [8, 8]
    state = run(archives, tokens)
    assert [report.clips for report in state.result().reports] == [9, 8]
    assert [row.clip for row in read_rows(tokens / "archive_batch_0001.parquet")][-1] == "audio/more.flac"


def test_the_limit_counts_clips_over_the_whole_run(archives: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    assert [report.clips for report in run(archives, tokens, limit=10).result().reports] == [8, 2]
    assert json.loads((tokens / "archive_batch_0002.json").read_text())["limited_to"] == 2
    assert [report.clips for report in run(archives, tokens).result().reports] == [8, 8]


def test_a_missing_archive_is_an_error_that_names_the_location(tmp_path: Path) -> None:
    state = run(tmp_path / "nothing", tmp_path / "tokens")
    with pytest.raises(ArchiveError, match=r"no archives found at .*nothing.*\. Give a file, a directory"):
        state.result()


def test_metadata_without_a_match_stop_the_run_before_encoding(archives: Path, tmp_path: Path) -> None:
    (archives / "metadata.jsonl").write_text('{"path": "other/song.wav", "description": "x"}\n')
    state = run(archives, tmp_path / "tokens")
    with pytest.raises(MetadataError, match=r"matches none of the 17 clips.*other/song\.wav"):
        state.result()
    assert task_states(state.state_details.flow_run_id, 0) == []


def test_a_table_in_the_ui_shows_clips_rejections_and_reasons(archives: Path, tmp_path: Path) -> None:
    state = run(archives, tmp_path / "tokens")
    with get_client(sync_client=True) as client:
        table_key = ArtifactFilter(key=ArtifactFilterKey(any_=["tokenized-archives"]))
        found = client.read_artifacts(artifact_filter=table_key)
    [table] = [entry for entry in found if entry.flow_run_id == state.state_details.flow_run_id]
    whole, *rows = json.loads(str(table.data))
    assert (whole["archive"], whole["state"], whole["clips"], whole["rejected"]) == ("all 2", "2 ended", 16, 1)
    assert [(row["archive"], row["clips"], row["rejected"]) for row in rows] == [
        ("archive_batch_0001", 8, 0),
        ("archive_batch_0002", 8, 1),
    ]
    assert "audio/broken.wav: not decodable" in rows[1]["problem"]


def test_an_archive_logs_only_its_rejected_clips(archives: Path, tmp_path: Path) -> None:
    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said: list[str] = []
    handler = Kept(logging.INFO)
    logging.getLogger("prefect.task_runs").addHandler(handler)
    try:
        run(archives, tmp_path / "tokens")
    finally:
        logging.getLogger("prefect.task_runs").removeHandler(handler)
    ours = [text for text in said if not text.startswith("Finished in state")]  # Prefect's own
    assert len(said) > len(ours) == 1
    assert ours[0].startswith("archive_batch_0002: rejected audio/broken.wav")


def test_a_damaged_shard_is_regenerated_despite_its_cached_result(archives: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    run(archives, tokens)
    shard = tokens / "archive_batch_0001.parquet"
    whole = shard.read_bytes()
    codes = pq.read_metadata(shard).row_group(0).column(pq.read_schema(shard).names.index("codes"))
    at = codes.data_page_offset + codes.total_compressed_size // 2  # checksums cover pages, not their headers
    shard.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    assert run(archives, tokens).is_completed()
    assert shard.read_bytes() == whole


def test_only_a_replaced_archive_is_tokenized_again(archives: Path, tmp_path: Path) -> None:
    run(archives, tmp_path / "tokens")
    with (
        zipfile.ZipFile(archives / "archive_batch_0002.zip") as old,
        zipfile.ZipFile(archives / "new", "w") as new,
    ):
        for name in old.namelist()[:3]:
            new.writestr(name, old.read(name))
    (archives / "new").replace(archives / "archive_batch_0002.zip")
    state = run(archives, tmp_path / "tokens")
    assert two_states(state) == ["Cached", "Completed"]
    result: TokenizeResult = state.result()
    assert [report.clips for report in result.reports] == [8, 3]


def test_a_result_is_not_reused_for_other_descriptions(archives: Path, tmp_path: Path) -> None:
    run(archives, tmp_path / "tokens")
    state = run(archives, tmp_path / "tokens", caption="lofi")
    assert two_states(state) == ["Completed", "Completed"]
    kept = "2 archives tokenized before: not encoded again, but the descriptions of 2 are new"
    assert kept in state.result().remarks
    place = storage.as_path(tmp_path / "tokens")
    rows = list(read_rows(Path(str(shard_paths(place, "archive_batch_0001")[0]))))
    assert {row.description for row in rows} == {"lofi"}


def test_transient_errors_are_retried_and_bad_archives_are_not(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (archives / "archive_batch_0002.zip").write_bytes(b"not an archive")
    attempts: list[str] = []
    encode = Tokenizer._encode_archive

    def shaky(self: Tokenizer, file: ArchiveFile, *others: Any) -> ShardReport:
        attempts.append(file.path.name)
        if attempts.count(file.path.name) == 1 and file.path.name == "archive_batch_0001.zip":
            raise OSError(errno.EIO, "Input/output error")
        return encode(self, file, *others)

    monkeypatch.setattr(Tokenizer, "_encode_archive", shaky)
    monkeypatch.setattr(tokenize_archive, "retry_delay_seconds", [0, 0, 0])
    result: TokenizeResult = run(archives, tmp_path / "tokens").result(raise_on_failure=False).result
    assert [report.archive for report in result.reports] == ["archive_batch_0001.zip"]
    assert list(result.failed) == [str(archives / "archive_batch_0002.zip")]
    assert attempts.count("archive_batch_0001.zip") == 2


def test_missing_and_unmatched_metadata_are_reported(archives: Path, tmp_path: Path) -> None:
    with open(archives / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write('{"path": "audio/nowhere.wav", "description": "x"}\nbroken\n')
    result: TokenizeResult = run(archives, tmp_path / "tokens").result()
    assert result.remarks == [
        "metadata.jsonl: 1 line can't be used: 18",
        "metadata.jsonl: 1 of 17 entries without a clip: 'audio/nowhere.wav'",
        "metadata.jsonl: 1 of 17 clips without an entry: 'audio/broken.wav'",
    ]


def test_missing_clips_and_descriptions_are_reported(
    archives: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "musicgen_core")
    (archives / "metadata.jsonl").unlink()
    with zipfile.ZipFile(archives / "archive_batch_0002.zip", "w") as archive:
        archive.writestr("a.jpg", b"no clip")
    result: TokenizeResult = run(archives, tmp_path / "tokens").result()
    assert result.remarks == ["archive_batch_0002.zip holds no clips"]
    assert result.notice.startswith("None of the 8 clips has a description") and result.is_announced
    beginning = next(text for text in caplog.messages if "has a description" in text)
    assert beginning.startswith("None of the 8 clips in archive_batch_0001.zip has a description")
    assert caplog.messages.index(beginning) < caplog.messages.index("encoding the clips")


def test_archives_left_out_are_logged_and_in_the_summary(
    archives: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (archives / "archive_batch_0002.zip").unlink()
    shutil.copy(archives / "archive_batch_0001.zip", archives / "archive_batch_0001 (1).zip")
    (archives / "b.7z").touch()
    state = run(archives, tmp_path / "tokens")
    foreign, copy = state.result().remarks[:2]
    assert foreign.startswith("b.7z not read")
    assert copy == "archive_batch_0001 (1).zip is left out: it holds the same as archive_batch_0001.zip"
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert {foreign, copy} <= set(logged)
    with get_client(sync_client=True) as client:
        summary_key = ArtifactFilter(key=ArtifactFilterKey(any_=["summary"]))
        found = client.read_artifacts(artifact_filter=summary_key)
    [summary] = [str(entry.data) for entry in found if entry.flow_run_id == state.state_details.flow_run_id]
    assert "7z not read" in summary and "is left out" in summary


def test_the_first_few_skipped_and_failed_archives_are_named(
    archives: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(5):
        shutil.copy(archives / "archive_batch_0001.zip", archives / f"archive_batch_0001 ({number}).zip")
        (archives / f"broken_{number}.zip").write_bytes(f"not an archive {number}".encode())
    state = run(archives, tmp_path / "tokens")
    message = str(state.message)
    assert message.startswith(f"5 of 7 archives failed: {archives}/broken_0.zip can't be read") and message.endswith(
        "; and 2 more"
    )
    assert "broken_2" in message and "broken_3" not in message
    logged = [record.getMessage() for record in caplog.records if record.name == "musicgen_core.archives"]
    assert logged[2].startswith("archive_batch_0001 (2).zip is left out") and logged[3].startswith("and 2 more")


def test_a_location_that_cannot_be_a_folder_is_refused_by_name(archives: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file can't be a folder"):
        run(archives, tmp_path / "file").result()


def test_a_retry_in_the_ui_repeats_only_failed_archives(archives: Path, tmp_path: Path) -> None:
    good = (archives / "archive_batch_0002.zip").read_bytes()
    (archives / "archive_batch_0002.zip").write_bytes(b"not an archive")
    failed = run(archives, tmp_path / "tokens")
    flow_run_id = failed.state_details.flow_run_id
    assert failed.is_failed() and flow_run_id is not None
    (archives / "archive_batch_0002.zip").write_bytes(good)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)  # what the Retry button does
        again = run_flow(tokenize_archives, flow_run=client.read_flow_run(flow_run_id), return_type="state")
    assert again.is_completed()
    done = [report.archive for report in again.result().reports]
    assert done == ["archive_batch_0001.zip", "archive_batch_0002.zip"]
    states = sorted(state for _, state in task_states(flow_run_id, 4))
    assert states == ["Cached", "Completed", "Completed", "Failed"]

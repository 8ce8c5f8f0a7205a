"""Runs with a model from the Hub: it is downloaded once, before the work starts, and errors fail the run once."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from flows.finetune import finetune
from flows.tokenize_archives import TokenizeResult, tokenize_archives
from musicgen_core.data.archive import ArchiveFile
from musicgen_core.data.shards import ShardReport
from musicgen_core.errors import DeviceError, ModelError, StorageError
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.tokenizing import Tokenizer
from tasks.progress import Update, listening
from tests.stand_in_hub import Fault, StandInHub

MODEL = "facebook/musicgen-large"

pytestmark = pytest.mark.usefixtures("prefect_server")


def run(archives: Path, tokens: Path, model: str = MODEL) -> Any:
    state = tokenize_archives(archives=str(archives), tokens=str(tokens), model=model, device="cpu", return_state=True)
    return state.result(raise_on_failure=False)


def test_tokenizing_fetches_the_codec_alone_and_reports_it(
    hub: StandInHub, demo_archives: Path, tmp_path: Path
) -> None:
    hub.add(MODEL, debug_model_directory())
    heard: list[Any] = []
    with listening(heard.append):
        result: TokenizeResult = run(demo_archives, tmp_path / "tokens")
    assert [report.clips for report in result.reports] == [8, 8]
    assert hub.fetched() == ["compression_state_dict.bin"]
    downloads = [update for update in heard if isinstance(update, Update) and update.stage == "fetch"]
    assert downloads[-1].done == downloads[-1].total and MODEL in downloads[-1].text and "MB/s" in downloads[-1].text


def test_an_unreachable_hub_fails_the_run_once_and_no_archive(
    hub: StandInHub, demo_archives: Path, tmp_path: Path
) -> None:
    hub.faults.append(Fault(status=503, times=99))
    error = run(demo_archives, tmp_path / "tokens")
    assert isinstance(error, ModelError) and "503" in error.found and "archive" not in error.found
    assert len(hub.requests) == 6


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tokens/x"), StorageError, "no space left at /tokens/x"),
        (DeviceError("60 s of audio don't fit"), DeviceError, "60 s of audio don't fit"),
        (type("AcceleratorError", (RuntimeError,), {})("CUDA error"), DeviceError, "the GPU failed .*CUDA error"),
    ],
    ids=["disk", "memory", "GPU"],
)
def test_an_error_of_all_archives_ends_the_run_with_its_reason(
    error: Exception,
    kind: type[Exception],
    said: str,
    demo_archives: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[str] = []

    def failing(self: Tokenizer, file: ArchiveFile, *_: Any) -> ShardReport:
        attempts.append(file.path.name)
        raise error

    monkeypatch.setattr(Tokenizer, "_encode_archive", failing)
    found = run(demo_archives, tmp_path / "tokens", "debug")
    assert isinstance(found, kind)
    with pytest.raises(kind, match=said):
        raise found
    assert len(attempts) == len(set(attempts))


def test_an_unusable_model_fails_the_run_before_it_starts(hub: StandInHub, demo_archives: Path, tmp_path: Path) -> None:
    repository = hub.add(MODEL, debug_model_directory())
    repository.files = {name: data for name, data in repository.files.items() if not name.startswith("text_encoder/")}
    state = finetune(
        archives=str(demo_archives),
        tokens=str(tmp_path / "tokens"),
        run_dir=str(tmp_path / "run"),
        output=str(tmp_path / "music"),
        model=MODEL,
        device="cpu",
        return_state=True,
    )
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ModelError) and "t5-small is not on the Hugging Face Hub" in error.found
    assert not (tmp_path / "tokens").exists()

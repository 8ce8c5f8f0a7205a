"""Downloads from the Hub: which files, with which token, and their progress."""

from __future__ import annotations

from pathlib import Path

import pytest

from musicgen_core.model import hub as hub_module
from musicgen_core.model.hub import DownloadProgress, Wanted, cached, download_listener, fetch
from tests.musicgen_core.model.hub_downloads import FILES, LARGE, REPO, WANTED, blobs
from tests.stand_in_hub import TOKEN, Fault, Repository, StandInHub


@pytest.mark.usefixtures("repository")
def test_only_what_is_wanted_is_fetched(hub: StandInHub, tmp_path: Path) -> None:
    folder = fetch(REPO, WANTED)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "config.json",
        "weights.bin",
        "tokenizer/vocab.txt",
    }
    assert (folder / "weights.bin").read_bytes() == LARGE
    assert sorted(hub.fetched()) == ["config.json", "tokenizer/vocab.txt", "weights.bin"]
    assert not [path for path in blobs(tmp_path) if path.suffix]


@pytest.mark.usefixtures("repository")
def test_a_mirror_without_sizes_is_asked_for_its_tree(hub: StandInHub) -> None:
    hub.has_metadata = False
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


@pytest.mark.parametrize("access", ["private", "gated"])
def test_a_token_opens_what_is_not_public(repository: Repository, access: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.access = access
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


@pytest.mark.usefixtures("repository")
def test_of_several_wants_the_first_that_is_there_is_fetched(hub: StandInHub) -> None:
    folder = fetch(REPO, Wanted(("model.onnx",)), Wanted(("weights.bin",)))
    assert hub.fetched() == ["weights.bin"] and cached(REPO, Wanted(("x",)), Wanted(("weights.bin",))) == folder


@pytest.mark.usefixtures("repository")
def test_progress_ends_with_every_byte(hub: StandInHub, caplog: pytest.LogCaptureFixture) -> None:
    heard: list[DownloadProgress] = []
    hub.faults.append(Fault("/cdn/", sends=1_000_000))
    with download_listener(heard.append), caplog.at_level("INFO", "musicgen_core"):
        fetch(REPO, WANTED)
    total = sum(len(FILES[name]) for name in ("config.json", "weights.bin", "tokenizer/vocab.txt"))
    assert (heard[-1].done, heard[-1].total) == (total, total) and heard[-1].bytes_per_sec > 0
    assert [progress.done for progress in heard] == sorted(progress.done for progress in heard)
    assert f"fetching {REPO} from the Hugging Face Hub, 2.0 MB" in caplog.text and f"fetched {REPO}" in caplog.text


@pytest.mark.usefixtures("repository")
def test_a_long_download_logs_its_progress(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hub_module, "LOG_EVERY_SECONDS", 0.0)
    with caplog.at_level("INFO", "musicgen_core"):
        fetch(REPO, WANTED)
    assert f"fetching {REPO}: 2.0 MB of 2.0 MB, " in caplog.text and "B/s" in caplog.text

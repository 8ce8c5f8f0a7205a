"""The Hub's cache on disk: shared with other programs, used without the Hub, renewed where it matters."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from musicgen_core.model.hub import Wanted, cached, fetch
from tests.musicgen_core.model.hub_downloads import LARGE, REPO, WANTED, blobs, refused
from tests.stand_in_hub import Fault, Repository, StandInHub


@pytest.mark.usefixtures("repository")
def test_other_programs_find_it_in_the_cache(hub: StandInHub) -> None:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    folder = fetch(REPO, WANTED)
    assert try_to_load_from_cache(REPO, "weights.bin") == str(folder / "weights.bin")
    asked = len(hub.fetched())
    assert hf_hub_download(REPO, "weights.bin") == str(folder / "weights.bin")
    assert len(hub.fetched()) == asked


@pytest.mark.usefixtures("repository")
def test_what_other_programs_fetched_is_used(hub: StandInHub) -> None:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(REPO)
    hub.requests.clear()
    assert fetch(REPO, WANTED) == Path(folder)
    assert hub.requests == []


@pytest.mark.usefixtures("repository")
def test_a_complete_cache_is_used_without_the_hub(hub: StandInHub) -> None:
    folder = fetch(REPO, WANTED)
    hub.faults.append(Fault(hangs=True, times=99))
    hub.requests.clear()
    assert fetch(REPO, WANTED) == folder
    assert hub.requests == []


@pytest.mark.usefixtures("repository")
def test_offline_a_complete_cache_is_used(monkeypatch: pytest.MonkeyPatch, hub: StandInHub) -> None:
    folder = fetch(REPO, WANTED)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert fetch(REPO, WANTED) == fetch(REPO, WANTED, newest=True) == folder
    assert hub.requests == []


@pytest.mark.usefixtures("repository")
def test_offline_an_incomplete_cache_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetch(REPO, Wanted(("config.json",)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(REPO, "HF_HUB_OFFLINE", str(tmp_path / "hub-cache"), next_step="Unset HF_HUB_OFFLINE"):
        fetch(REPO, WANTED)


def test_a_new_version_is_fetched_where_it_matters(hub: StandInHub, repository: Repository) -> None:
    old = fetch(REPO, WANTED)
    repository.files["config.json"] = b'{"new": 1}'
    assert fetch(REPO, WANTED) == old
    hub.requests.clear()
    new = fetch(REPO, WANTED, newest=True)
    assert (new / "config.json").read_bytes() == b'{"new": 1}' and (new / "weights.bin").read_bytes() == LARGE
    assert hub.fetched() == ["config.json"]


@pytest.mark.usefixtures("repository")
def test_a_hub_that_cannot_say_whats_new_is_passed_over(hub: StandInHub, caplog: pytest.LogCaptureFixture) -> None:
    folder = fetch(REPO, WANTED)
    hub.faults.append(Fault(status=503, times=99))
    assert fetch(REPO, WANTED, newest=True) == folder
    assert f"the cached revision {folder.name[:12]} of {REPO} is used" in caplog.text


@pytest.mark.parametrize("fault", [Fault("/cdn/", status=503, times=99), Fault("/cdn/", spoils=True, times=99)])
def test_a_revision_that_cannot_be_fetched_gives_way_to_the_cached(
    hub: StandInHub, repository: Repository, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    old = fetch(REPO, WANTED)
    repository.files["config.json"], repository.files["weights.bin"] = b'{"new": 1}', LARGE[::-1]
    hub.faults.append(fault)
    assert fetch(REPO, WANTED, newest=True) == cached(REPO, WANTED) == old
    assert (old / "weights.bin").read_bytes() == LARGE
    assert f"the cached revision {old.name[:12]} of {REPO} is used" in caplog.text
    hub.faults.clear()
    assert (fetch(REPO, WANTED, newest=True) / "weights.bin").read_bytes() == LARGE[::-1]


def test_a_revision_without_the_files_gives_way_to_the_cached(hub: StandInHub, repository: Repository) -> None:
    old = fetch(REPO, WANTED)
    del repository.files["weights.bin"]
    assert fetch(REPO, WANTED, newest=True) == old


def test_what_other_programs_left_unfinished_is_deleted(repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "hub-cache" / "models--somebody--model" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{repository.etag('weights.bin')}.1a2b3c4d.incomplete").write_bytes(b"x" * 1000)
    old, new = folder / f"{'0' * 64}.incomplete", folder / f"{'1' * 64}.incomplete"
    old.write_bytes(b"of an older version")
    new.write_bytes(b"perhaps still written to")
    os.utime(old, (0, 0))
    fetch(REPO, WANTED)
    assert [path for path in blobs(tmp_path) if path.suffix] == [new]


@pytest.mark.usefixtures("repository")
def test_two_processes_at_once_download_each_file_once(hub: StandInHub, tmp_path: Path) -> None:
    hub.faults.append(Fault("/cdn/", sends=1_000_000))  # the second finds the first in the middle of a file
    code = "from musicgen_core.model.hub import Wanted, fetch; import sys; wanted = Wanted(('weights.bin',))"
    code += "; print(fetch(sys.argv[1], wanted))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub-cache")}
    processes = [
        subprocess.Popen([sys.executable, "-c", code, REPO], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    [first, second] = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert first == second and (Path(first) / "weights.bin").read_bytes() == LARGE
    ranges = [wanted for _, path, wanted in hub.requests if path.startswith("/cdn/")]
    assert ranges == ["", "bytes=1000000-"], "one whole transfer, in two parts"
    assert not [path for path in blobs(tmp_path) if path.suffix]


@pytest.mark.usefixtures("repository")
def test_two_threads_at_once_download_each_file_once(hub: StandInHub) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: fetch(REPO, WANTED), range(2)))
    assert found[0] == found[1] and (found[0] / "weights.bin").read_bytes() == LARGE
    assert sorted(hub.fetched()) == ["config.json", "tokenizer/vocab.txt", "weights.bin"]

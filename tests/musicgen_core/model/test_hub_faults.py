"""A Hub that is busy, silent, drops connections or sends wrong bytes: retries, and downloads that resume."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from musicgen_core.model.hub import cached, fetch
from tests.musicgen_core.model.hub_downloads import FILES, LARGE, REPO, WANTED, blobs, refused
from tests.stand_in_hub import Fault, Repository, StandInHub


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("path", ["/api/", "/resolve/", "/cdn/"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_one_busy_answer_does_not_end_it(hub: StandInHub, path: str, status: int) -> None:
    hub.faults.append(Fault(path, status=status))
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


@pytest.fixture
def waits(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr("musicgen_core.model.hub_transfer._pause", seconds.append)
    return seconds


@pytest.mark.usefixtures("repository")
def test_the_hub_says_how_long_to_wait(hub: StandInHub, waits: list[float]) -> None:
    hub.faults += [
        Fault("/cdn/", status=429, headers={"Retry-After": "17"}),
        Fault("/cdn/", status=429, headers={"RateLimit": '"resolvers";r=0;t=55'}),
        Fault("/cdn/", status=503),
    ]
    fetch(REPO, WANTED)
    assert waits == [17.0, 55.0, 4.0]


@pytest.mark.usefixtures("repository")
def test_attempts_are_bounded(hub: StandInHub, waits: list[float]) -> None:
    hub.faults.append(Fault("/cdn/", status=503, times=99))
    with refused(REPO, "503", "6 times", next_step="again later"):
        fetch(REPO, WANTED)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.usefixtures("repository")
def test_a_wait_of_hours_is_not_waited_for(hub: StandInHub, waits: list[float]) -> None:
    hub.faults.append(Fault("/api/", status=429, headers={"Retry-After": "7200"}))
    with refused(REPO, "429"):
        fetch(REPO, WANTED)
    assert waits == []


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("path", ["/api/", "/resolve/", "/cdn/"])
def test_a_hub_that_never_answers_is_left(hub: StandInHub, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for timeout in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(f"huggingface_hub.constants.{timeout}", 0.1)
    hub.faults.append(Fault(path, hangs=True, times=99))
    with refused(REPO, hub.url, "did not answer in time", "3 times"):
        fetch(REPO, WANTED)


@pytest.mark.usefixtures("repository")
def test_a_dropped_connection_resumes_where_it_was(hub: StandInHub) -> None:
    hub.faults += [Fault("/cdn/", sends=300_000) for _ in range(6)]  # each brings something: no limit is reached
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE
    starts = [int(wanted[6:-1]) for method, path, wanted in hub.requests if path.startswith("/cdn/") and wanted]
    assert starts == [300_000 * (i + 1) for i in range(6)]


@pytest.mark.usefixtures("repository")
def test_a_connection_that_only_drops_is_said(hub: StandInHub) -> None:
    hub.faults.append(Fault("/cdn/", sends=0, times=99))
    with refused(REPO, "connection to the Hugging Face Hub was lost", next_step="again later"):
        fetch(REPO, WANTED)


@pytest.mark.usefixtures("repository")
def test_a_download_that_failed_resumes_in_the_next_run(hub: StandInHub) -> None:
    hub.faults += [Fault("/cdn/", sends=1_500_000), Fault("/cdn/", status=403)]
    with refused(REPO):
        fetch(REPO, WANTED)
    hub.requests.clear()
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE
    assert [wanted for _, path, wanted in hub.requests if path.startswith("/cdn/")] == ["bytes=1500000-"]


def test_a_killed_download_resumes(hub: StandInHub, repository: Repository, tmp_path: Path) -> None:
    gate = Fault("/cdn/", sends=1_500_000)
    hub.faults += [gate, Fault("/cdn/", hangs=True)]  # the process is killed while it waits for the rest
    code = "import sys; from musicgen_core.model.hub import Wanted, fetch; fetch(sys.argv[1], Wanted(('weights.bin',)))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "hub-cache")}
    process = subprocess.Popen([sys.executable, "-c", code, REPO], env=environment)
    deadline = time.monotonic() + 60
    while sum(path.startswith("/cdn/") for _, path, _ in hub.requests) < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    [part] = blobs(tmp_path)
    assert part.name == f"{repository.etag('weights.bin')}.incomplete" and part.stat().st_size == 1_500_000
    hub.requests.clear()
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE
    assert [wanted for _, path, wanted in hub.requests if path.startswith("/cdn/")] == ["bytes=1500000-"]
    assert not [path for path in blobs(tmp_path) if path.suffix]


@pytest.mark.usefixtures("repository")
def test_a_server_without_ranges_sends_all_again(hub: StandInHub) -> None:
    hub.ignores_ranges = True
    hub.faults.append(Fault("/cdn/", sends=1_000_000))
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


def test_wrong_bytes_never_count_as_the_file(hub: StandInHub, tmp_path: Path) -> None:
    hub.repositories[REPO] = Repository(dict(FILES))
    hub.faults.append(Fault("/cdn/", spoils=True))
    with refused(REPO, "damaged", "SHA-256"):
        fetch(REPO, WANTED)
    assert cached(REPO, WANTED) is None
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


def test_a_beginning_of_something_else_is_thrown_away(repository: Repository, tmp_path: Path) -> None:
    folder = tmp_path / "hub-cache" / "models--somebody--model" / "blobs"
    folder.mkdir(parents=True)
    (folder / f"{repository.etag('weights.bin')}.incomplete").write_bytes(b"of something else")
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE

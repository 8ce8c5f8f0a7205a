"""Downloads from the Hub, with a local server that fails in every way that the real one does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from musicgen_core.errors import ModelError
from musicgen_core.model import hub as hub_module
from musicgen_core.model.hub import DownloadProgress, Wanted, cached, download_listener, fetch
from tests.stand_in_hub import TOKEN, Fault, Repository, StandInHub

REPO = "somebody/model"
LARGE = bytes(range(256)) * 8000  # 2 MB
FILES = {"config.json": b"{}", "weights.bin": LARGE, "unwanted.bin": b"u" * 5000, "tokenizer/vocab.txt": b"a b c"}
WANTED = Wanted(("config.json", ("weights.safetensors", "weights.bin")), ("tokenizer/*",))


@pytest.fixture
def repository(hub: StandInHub) -> Repository:
    hub.repositories[REPO] = Repository(dict(FILES))
    return hub.repositories[REPO]


@contextmanager
def refused(*parts: str, next_step: str = "") -> Iterator[None]:
    with pytest.raises(ModelError) as refusal:
        yield
    for part in parts:
        assert part in refusal.value.found
    assert next_step in refusal.value.next_step
    assert TOKEN not in str(refusal.value) and "signature" not in str(refusal.value)


def blobs(cache: Path) -> list[Path]:
    return sorted(cache.glob("hub-cache/models--*/blobs/*"))


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


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("path", ["/api/", "/resolve/", "/cdn/"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_one_busy_answer_does_not_end_it(hub: StandInHub, path: str, status: int) -> None:
    hub.faults.append(Fault(path, status=status))
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


@pytest.fixture
def waits(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr("musicgen_core.model.hub_errors._pause", seconds.append)
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


def test_nobody_at_the_address_is_said(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refused(REPO, "http://127.0.0.1:9 can't be reached"):
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


@pytest.mark.usefixtures("repository")
def test_a_mirror_without_sizes_is_asked_for_its_tree(hub: StandInHub) -> None:
    hub.has_metadata = False
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


@pytest.mark.usefixtures("repository")
def test_too_little_room_is_said_before_the_download(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=500_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with refused("no space left", "2.0 MB", "500.0 kB are free", str(tmp_path / "hub-cache"), next_step="HF_HOME"):
        fetch(REPO, WANTED)
    assert hub.fetched() == []


@pytest.mark.usefixtures("repository")
def test_a_disk_that_fills_up_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write = os.write

    def full(target: int, data: Any) -> int:
        if os.fstat(target).st_size > 1_000_000:
            raise OSError(28, "No space left on device")
        return write(target, data)

    monkeypatch.setattr(os, "write", full)
    with refused("no space left", REPO, str(tmp_path / "hub-cache"), next_step="Make room"):
        fetch(REPO, WANTED)


@pytest.mark.usefixtures("repository")
def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "hub-cache").write_text("a file")
    with refused(REPO, str(tmp_path / "hub-cache"), next_step="HF_HOME"):
        fetch(REPO, WANTED)


@pytest.mark.parametrize("access", ["private", "gated"])
def test_access_is_asked_for_by_its_name(hub: StandInHub, repository: Repository, access: str) -> None:
    repository.access = access
    with refused(REPO, access, "no HF_TOKEN", next_step="HF_TOKEN"):
        fetch(REPO, WANTED)


@pytest.mark.parametrize("access", ["private", "gated"])
def test_a_token_opens_what_is_not_public(repository: Repository, access: str, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.access = access
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert (fetch(REPO, WANTED) / "weights.bin").read_bytes() == LARGE


@pytest.mark.usefixtures("repository")
def test_a_wrong_token_is_blamed_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not-to-be-seen")
    with pytest.raises(ModelError, match="refuses HF_TOKEN") as refusal:
        fetch(REPO, WANTED)
    assert "not-to-be-seen" not in str(refusal.value)


def test_a_repository_that_is_not_there_is_named(hub: StandInHub) -> None:
    with refused("nobody/nothing", "not on the Hugging Face Hub", next_step="Check the name"):
        fetch("nobody/nothing", WANTED)


@pytest.mark.usefixtures("repository")
def test_a_file_that_is_not_there_is_named_with_what_is() -> None:
    with refused(REPO, "model.onnx", "config.json"):
        fetch(REPO, Wanted(("model.onnx",)))


@pytest.mark.usefixtures("repository")
def test_of_several_wants_the_first_that_is_there_is_fetched(hub: StandInHub) -> None:
    folder = fetch(REPO, Wanted(("model.onnx",)), Wanted(("weights.bin",)))
    assert hub.fetched() == ["weights.bin"] and cached(REPO, Wanted(("x",)), Wanted(("weights.bin",))) == folder


def test_what_is_no_hub_is_said(hub: StandInHub, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stand_in_hub._Handler._send_json", lambda self, value: self._send(200, b"<html>", {}))
    with refused(REPO, hub.url, "no answer of the Hub's kind"):
        fetch(REPO, WANTED)


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

"""Downloads that can't be: the error names the repository, the reason and the next step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from musicgen_core.errors import ModelError
from musicgen_core.model.hub import Wanted, fetch
from tests.musicgen_core.model.hub_downloads import REPO, WANTED, refused
from tests.stand_in_hub import Repository, StandInHub


def test_nobody_at_the_address_is_said(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refused(REPO, "http://127.0.0.1:9 can't be reached"):
        fetch(REPO, WANTED)


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


@pytest.mark.usefixtures("repository")
def test_a_wrong_token_is_blamed_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not-to-be-seen")
    with pytest.raises(ModelError, match="refuses HF_TOKEN") as refusal:
        fetch(REPO, WANTED)
    assert "not-to-be-seen" not in str(refusal.value)


def test_a_repository_that_is_not_there_is_named(hub: StandInHub) -> None:
    with refused("nobody/nothing", "not on the Hugging Face Hub", next_step="Check the name"):
        fetch("nobody/nothing", WANTED)


@pytest.mark.parametrize(
    ("typo", "near"),
    [
        ("facebook/musicgen-larg", "facebook/musicgen-large"),
        ("Facebook/MusicGen-Smal", "facebook/musicgen-small"),
        ("facebok/musicgen-medium", "facebook/musicgen-medium"),
        ("somebody/modell", REPO),
    ],
)
@pytest.mark.usefixtures("repository")
def test_a_typo_is_named_with_the_nearest_known_name(hub: StandInHub, typo: str, near: str) -> None:
    fetch(REPO, WANTED)  # known since then
    with refused(typo, "not on the Hugging Face Hub", next_step=f"Did you mean {near}?"):
        fetch(typo, WANTED)


@pytest.mark.usefixtures("repository")
def test_a_typo_is_named_offline_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(REPO, WANTED)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused("somebody/modell", "HF_HUB_OFFLINE", next_step=f"Did you mean {REPO}?"):
        fetch("somebody/modell", WANTED)


def test_offline_without_a_cache_nothing_is_asked(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refused(REPO, "HF_HUB_OFFLINE", next_step="Unset HF_HUB_OFFLINE"):
        fetch(REPO, WANTED)
    assert hub.requests == []


@pytest.mark.usefixtures("repository")
def test_a_file_that_is_not_there_is_named_with_what_is() -> None:
    with refused(REPO, "model.onnx", "config.json"):
        fetch(REPO, Wanted(("model.onnx",)))


def test_what_is_no_hub_is_said(hub: StandInHub, repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.stand_in_hub._Handler._send_json", lambda self, value: self._send(200, b"<html>", {}))
    with refused(REPO, hub.url, "no answer of the Hub's kind"):
        fetch(REPO, WANTED)

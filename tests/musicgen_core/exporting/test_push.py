"""Exports that are pushed to the stand-in Hub: card, updates, and uploads that fail after the export."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from musicgen_core import storage
from musicgen_core.errors import ConfigError, MusicgenError, StorageError
from musicgen_core.exporting.export import Exported
from musicgen_core.exporting.model_card import ExportKind
from musicgen_core.exporting.push import MARKER, export_and_push
from musicgen_core.model.adapters import Adapter, find_adapter, load_adapter, save_adapter
from musicgen_core.model.hub_upload import Pushed, UploadProgress
from musicgen_core.model.local_files import LM_FILE, file_sha256
from musicgen_core.model.weights import find_model
from tests.stand_in_hub import TOKEN, Fault, Repository, StandInHub

REPO = "somebody/jazz"
PROMPTS = ["calm *piano*", "<b>drums</b>: loud"]


@pytest.fixture(autouse=True)
def _of_somebody(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def run_dir(adapter: Adapter, tmp_path: Path) -> Path:
    """Return a run directory with its best adapter, and the samples of two prompts."""
    run = tmp_path / "run"
    save_adapter(
        dataclasses.replace(adapter, base_model="facebook/musicgen-large@sha256:0123456789abcdef"),
        storage.as_path(run / "lora_weights/best_lora.pt"),
    )
    (run / "config.json").write_text(json.dumps({"num_epochs": 2}))
    (run / "samples").mkdir()
    (run / "samples/prompts.json").write_text(json.dumps({"prompts": PROMPTS, "duration": 10}))
    for epoch in (0, adapter.epoch):
        for i in range(len(PROMPTS)):
            (run / f"samples/epoch_{epoch:03d}_{i:02d}.wav").write_bytes(f"{epoch} {i}".encode() * 2000)
    return run


Push = Callable[..., tuple[Exported, Pushed | None]]


@pytest.fixture
def push(run_dir: Path, tmp_path: Path) -> Push:
    def export_it(
        out: object = tmp_path / "out",
        kind: ExportKind = "peft",
        repo: str = REPO,
        is_public: bool = False,
        heard: list[UploadProgress] | None = None,
    ) -> tuple[Exported, Pushed | None]:
        listener = (lambda progress: None) if heard is None else heard.append
        return export_and_push(run_dir, str(out), kind, None, repo, is_public, listener)

    return export_it


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def front_matter(card: str) -> Any:
    return yaml.safe_load(card.split("---\n", 2)[1])


def test_the_repository_is_the_exported_directory(hub: StandInHub, push: Push, tmp_path: Path) -> None:
    heard: list[UploadProgress] = []
    exported, pushed = push(heard=heard)
    files = hub.repositories[REPO].files
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == files_in(tmp_path / "out")
    assert MARKER not in files and not (tmp_path / "out" / MARKER).exists()
    assert pushed is not None and pushed.url == f"{hub.url}/{REPO}" and pushed.is_private
    assert heard[-1].done == heard[-1].total == sum(exported.files.values())


def test_a_pushed_adapter_is_loaded_by_its_name(push: Push, adapter: Adapter) -> None:
    push()
    found = load_adapter(find_adapter(REPO))
    assert all(torch.equal(found.lora[name], tensor) for name, tensor in adapter.lora.items())


def test_a_merged_model_is_loaded_by_its_name(
    hub: StandInHub, adapter: Adapter, saved: Callable[[Adapter], Path], tmp_path: Path
) -> None:
    export_and_push(saved(adapter), tmp_path / "out", "audiocraft", None, REPO, True, lambda progress: None)
    model = find_model(REPO)
    assert file_sha256(model.lm_path) == file_sha256(tmp_path / "out" / LM_FILE)
    assert Path(model.text_encoder).is_relative_to(model.directory)
    card = hub.repositories[REPO].files["README.md"].decode()
    assert "# jazz: " in card and f'MusicGen.get_pretrained("{REPO}")' in card
    assert f'snapshot_download("{REPO}", allow_patterns="text_encoder/*")' in card


def test_a_pushed_model_for_transformers_is_a_base_model(
    hub: StandInHub, adapter: Adapter, saved: Callable[[Adapter], Path], tmp_path: Path
) -> None:
    export_and_push(saved(adapter), tmp_path / "out", "huggingface", None, REPO, True, lambda progress: None)
    model, local = find_model(REPO), find_model(str(tmp_path / "out"))
    assert model.identity == local.identity.replace("local", REPO)
    card = hub.repositories[REPO].files["README.md"].decode()
    assert front_matter(card)["library_name"] == "transformers" and f"generate --model {REPO}" in card
    assert f'MusicgenForConditionalGeneration.from_pretrained("{REPO}")' in card and "this directory" not in card


def test_the_card_has_what_the_hub_understands(hub: StandInHub, push: Push) -> None:
    push()
    card = hub.repositories[REPO].files["README.md"].decode()
    found = front_matter(card)
    assert found["base_model"] == "facebook/musicgen-large" and found["base_model_relation"] == "adapter"
    assert found["library_name"] == "peft" and found["pipeline_tag"] == "text-to-audio"
    assert found["license"] == "cc-by-nc-4.0" and "musicgen" in found["tags"]
    assert f'PeftModel.from_pretrained(model, "{REPO}")' in card and "this directory" not in card


def test_the_card_plays_the_samples_of_each_prompt(hub: StandInHub, push: Push) -> None:
    push()
    files = hub.repositories[REPO].files
    card = files["README.md"].decode()
    assert front_matter(card)["widget"] == [
        {"text": prompt, "output": {"url": f"samples/adapter_{i:02d}.wav"}} for i, prompt in enumerate(PROMPTS)
    ]
    players = re.findall(rf'<audio controls src="https://huggingface.co/{REPO}/resolve/main/(.*?)"></audio>', card)
    assert players == [f"samples/{voice}_{i:02d}.wav" for i in range(2) for voice in ("adapter", "base")]
    assert set(players) < set(files)
    assert r"**\<b\>drums\</b\>: loud**" in card and "<b>" not in card.split("---\n", 2)[2]


def test_a_later_export_updates_the_repository(hub: StandInHub, push: Push, run_dir: Path, tmp_path: Path) -> None:
    push()
    (run_dir / "samples/prompts.json").write_text(json.dumps({"prompts": PROMPTS[:1], "duration": 10}))
    _, pushed = push(tmp_path / "later")
    files = hub.repositories[REPO].files
    assert {name: data for name, data in files.items() if name != ".gitattributes"} == files_in(tmp_path / "later")
    assert "samples/adapter_01.wav" not in files and len(hub.uploads.commits) == 2
    assert pushed is not None and pushed.commit == hub.repositories[REPO].commit


def test_an_object_store_is_pushed_from(hub: StandInHub, push: Push, bucket: Any) -> None:
    push(bucket / "out")
    assert not (bucket / "out" / MARKER).exists()
    assert hub.repositories[REPO].files["README.md"] == (bucket / "out/README.md").read_bytes()


def test_without_a_repository_nothing_is_pushed(hub: StandInHub, push: Push, tmp_path: Path) -> None:
    assert push(repo="")[1] is None and hub.requests == []
    assert "<audio" not in (tmp_path / "out/README.md").read_text()
    with pytest.raises(ConfigError, match="without a repository"):
        push(repo="", is_public=True)


# Uploads that fail


@pytest.mark.parametrize("is_remote", [False, True], ids=["local", "object store"])
def test_a_failed_push_is_made_up_for_without_exporting_again(
    hub: StandInHub, push: Push, tmp_path: Path, bucket: Any, is_remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = bucket / "out" if is_remote else tmp_path / "out"
    hub.faults.append(Fault("/commit/", status=503, times=99))
    with pytest.raises(StorageError) as failure:
        push(out)
    assert REPO in failure.value.found and "503" in failure.value.found
    assert f"The export in {out} is complete" in failure.value.next_step and TOKEN not in str(failure.value)
    assert (out / "adapter_model.safetensors").exists()
    hub.faults.clear()
    monkeypatch.setattr("musicgen_core.exporting.push.export", lambda *_: pytest.fail("it is exported already"))
    received = hub.uploads.received
    push(out)
    assert hub.uploads.received == received, "the large files are there already"
    assert "adapter_model.safetensors" in hub.repositories[REPO].files and MARKER not in hub.repositories[REPO].files
    assert not (out / MARKER).exists()


def test_an_interrupted_push_is_made_up_for_without_exporting_again(
    hub: StandInHub, push: Push, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: UploadProgress) -> None:
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_and_push(run_dir, tmp_path / "out", "peft", None, REPO, False, interrupt)
    assert hub.uploads.commits == []
    monkeypatch.setattr("musicgen_core.exporting.push.export", lambda *_: pytest.fail("it is exported already"))
    push()
    assert "adapter_model.safetensors" in hub.repositories[REPO].files


@pytest.mark.parametrize("change", ["another repository", "a damaged file", "nothing is owed"])
def test_only_the_same_export_is_pushed_as_it_is(hub: StandInHub, push: Push, tmp_path: Path, change: str) -> None:
    hub.faults.append(Fault("/commit/", status=503, times=99))
    with pytest.raises(StorageError):
        push()
    hub.faults.clear()
    if change == "a damaged file":
        os.truncate(tmp_path / "out/adapter_model.safetensors", 10)
    elif change == "nothing is owed":
        push()
    with pytest.raises(ConfigError, match="has files in it"):
        push(repo="somebody/swing" if change == "another repository" else REPO)


@pytest.mark.parametrize("trouble", ["no token", "read-only", "offline", "no name", "another kind", "no network"])
def test_what_can_be_known_is_refused_before_the_export(
    hub: StandInHub, push: Push, tmp_path: Path, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trouble == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif trouble == "read-only":
        hub.uploads.role = "read"
    elif trouble == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif trouble == "another kind":
        hub.repositories[REPO] = Repository({"state_dict.bin": b"x"})
    elif trouble == "no network":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MusicgenError):
        push(repo="jazz" if trouble == "no name" else REPO)
    assert not (tmp_path / "out").exists()
    assert all(method == "GET" for method, _, _ in hub.requests)

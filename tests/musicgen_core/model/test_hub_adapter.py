"""Adapters that others have put on the Hub."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from musicgen_core import storage
from musicgen_core.config import SamplingSettings
from musicgen_core.errors import AdapterError
from musicgen_core.evaluation.evaluate import find_subject
from musicgen_core.exporting.export import export
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.generation.request import RenderRequest
from musicgen_core.model import peft_directory
from musicgen_core.model.adapters import (
    Adapter,
    AdapterConfig,
    displayed_path,
    find_adapter,
    load_adapter,
    may_be_on_hub,
    save_adapter,
)
from musicgen_core.model.lora import adapter_state, add_lora
from musicgen_core.model.weighted_adapters import WeightedAdapter
from musicgen_core.model.weights import BaseModel, load_lm
from tests.stand_in_hub import TOKEN, Fault, Repository, StandInHub

REPO = "somebody/jazz"


@pytest.fixture(scope="module")
def adapter(debug_model: BaseModel) -> Adapter:
    settings = AdapterConfig(2, 4.0)
    state = adapter_state(add_lora(load_lm(debug_model), settings))
    random = torch.Generator().manual_seed(1)
    lora = {name: 0.01 * torch.randn(tensor.shape, generator=random) for name, tensor in state.items()}
    return Adapter(lora, settings.plain(), 3, 40, 1.5, debug_model.identity)


Uploaded = Callable[..., Repository]


@pytest.fixture
def upload(hub: StandInHub, adapter: Adapter, tmp_path: Path) -> Uploaded:
    """Put the adapter on the Hub: as PEFT's directory, or as `*_lora.pt` files of the given names."""

    def put(*names: str) -> Repository:
        folder = tmp_path / "upload"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "large.bin").write_bytes(b"not asked for" * 100)
        if not names:
            peft_directory.write(vars(adapter), None, folder)
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            save_adapter(adapter, storage.as_path(folder / name))
        return hub.add(REPO, folder)

    return put


@contextlib.contextmanager
def refused(*parts: str) -> Iterator[None]:
    with pytest.raises(AdapterError) as refusal:
        yield
    assert [part for part in parts if part not in str(refusal.value)] == []
    assert TOKEN not in str(refusal.value)


def assert_same(found: Adapter, adapter: Adapter) -> None:
    assert found.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(found.lora[name], tensor) for name, tensor in adapter.lora.items())
    assert (found.epoch, found.global_step, found.base_model) == (3, 40, adapter.base_model)


@pytest.mark.parametrize(
    "names",
    [(), ("best_lora.pt", "final_lora.pt"), ("lora_weights/best_lora.pt",), ("jazz_lora.pt",)],
    ids=["PEFT", "best", "run directory", "any name"],
)
def test_an_adapter_is_found_in_a_repository(
    hub: StandInHub, upload: Uploaded, adapter: Adapter, names: tuple[str, ...]
) -> None:
    upload(*names)
    assert_same(load_adapter(find_adapter(REPO)), adapter)
    assert "checkpoints/large.bin" not in hub.fetched() and len(hub.fetched()) <= 2 * 2


@pytest.mark.parametrize("inside", ["rock_lora.pt", "styles/rock_lora.pt"])
def test_one_of_several_files_is_named(upload: Uploaded, adapter: Adapter, inside: str) -> None:
    upload("jazz_lora.pt", inside)
    with refused(REPO, "jazz_lora.pt"):
        find_adapter("somebody/jazz/none_lora.pt")
    assert_same(load_adapter(find_adapter(f"{REPO}/{inside}")), adapter)


def test_a_file_in_a_folder_alone_is_not_guessed(upload: Uploaded, adapter: Adapter) -> None:
    upload("styles/rock_lora.pt")
    with refused(REPO, "it has checkpoints/large.bin, styles/rock_lora.pt"):
        find_adapter(REPO)
    assert_same(load_adapter(find_adapter(f"{REPO}/styles/rock_lora.pt")), adapter)


def test_a_peft_directory_inside_a_repository_is_named(hub: StandInHub, adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "repository" / "jazz").mkdir(parents=True)
    peft_directory.write(vars(adapter), None, tmp_path / "repository" / "jazz")
    hub.add(REPO, tmp_path / "repository")
    assert_same(load_adapter(find_adapter(f"{REPO}/jazz")), adapter)


def test_a_path_that_exists_wins(
    hub: StandInHub, upload: Uploaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload()
    monkeypatch.chdir(tmp_path)
    (tmp_path / REPO).mkdir(parents=True)
    with refused("there is no adapter at somebody/jazz"):
        find_adapter(REPO)
    assert hub.requests == []


@pytest.mark.parametrize("location", ["jazz", "./somebody/jazz", "/runs/jazz", "gs://bucket/jazz", "../jazz/x"])
def test_other_locations_are_not_asked_for_at_the_hub(location: str) -> None:
    assert not may_be_on_hub(location)


def test_a_new_version_is_used_and_the_old_where_the_hub_is_away(
    hub: StandInHub, upload: Uploaded, adapter: Adapter
) -> None:
    repository = upload()
    old = find_adapter(REPO)
    repository.files["README.md"] = b"a newer version"
    new = find_adapter(REPO)
    assert old != new
    hub.faults.append(Fault(status=503, times=99))
    assert find_adapter(REPO) == new


@pytest.mark.parametrize("access", ["private", "gated"])
def test_an_adapter_without_access_is_said_to_be_so(
    upload: Uploaded, access: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload().access = access
    with refused(f"no adapter at {REPO}", access, "HF_TOKEN"):
        find_adapter(REPO)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert find_adapter(REPO).exists()


def test_what_is_neither_here_nor_on_the_hub_is_said(hub: StandInHub) -> None:
    with refused("no adapter at runs/frist", "not on the Hugging Face Hub"):
        find_adapter("runs/frist")


def test_a_repository_without_an_adapter_says_what_it_has(hub: StandInHub) -> None:
    hub.repositories[REPO] = Repository({"model.safetensors": b"m"})
    with refused("adapter_config.json", "best_lora.pt", "it has model.safetensors"):
        find_adapter(REPO)


def test_it_is_called_by_its_name_on_the_hub(upload: Uploaded) -> None:
    commit = upload().commit
    path = find_adapter(REPO)
    assert displayed_path(path) == f"{REPO}@{commit}/adapter_model.safetensors"
    subject = find_subject(REPO)
    assert str(subject.output) == "jazz_evaluation" and displayed_path(subject.path) == displayed_path(path)


def test_music_is_made_and_exported_with_it(
    upload: Uploaded, debug_model: BaseModel, adapter: Adapter, tmp_path: Path
) -> None:
    upload()
    exported = export(REPO, tmp_path / "exported", "peft")
    assert_same(load_adapter(find_adapter(str(exported.directory))), adapter)
    request = RenderRequest(
        out=str(tmp_path / "music"),
        prompts=[Prompt(prompt="slow piano")],
        model=str(debug_model.directory),
        settings=SamplingSettings(duration=0.2),
        adapters=(WeightedAdapter(REPO),),
        device="cpu",
        spectrograms=False,
    )
    [piece] = render(request)
    assert REPO in (tmp_path / "music" / "generated_000.json").read_text() and piece.with_adapter

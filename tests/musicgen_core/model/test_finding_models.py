"""`--model`: a name, a directory or an id of the Hub, and models that are refused or missing."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from musicgen_core.model.local_files import CODEC_FILE, LM_FILE
from musicgen_core.model.weights import BaseModel, find_codec, find_model, load_lm
from tests.musicgen_core.model.conftest import refused
from tests.stand_in_hub import StandInHub


def test_the_identity_follows_the_weights(debug_model: BaseModel, tmp_path: Path) -> None:
    altered = tmp_path / "state_dict.bin"
    altered.write_bytes(debug_model.lm_path.read_bytes() + b"\0")
    assert re.fullmatch(r"debug@sha256:[0-9a-f]{16}", debug_model.identity)
    assert BaseModel("debug", tmp_path).identity != debug_model.identity


def test_the_demo_model_is_found_whole_without_the_hub() -> None:
    model = find_model("demo")
    assert re.fullmatch(r"demo@sha256:[0-9a-f]{16}", model.identity)
    assert load_lm(model).config == model.config.decoder
    assert Path(model.text_encoder) == model.directory / "text_encoder"
    assert (model.directory / "README.md").is_file()


@pytest.mark.parametrize("missing", ["state_dict.bin", "compression_state_dict.bin", "text_encoder/model.safetensors"])
def test_a_checkout_without_the_demo_models_files_is_named(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(find_model("demo").directory, tmp_path / "demo"))
    (directory / missing).unlink()
    monkeypatch.setattr("musicgen_core.model.weights.DEMO_DIRECTORY", directory)
    with refused(f"{directory} has no {missing}", next_step="git checkout"):
        find_model("demo")


def test_a_directory_is_a_model(model_directory: Path) -> None:
    assert find_model(str(model_directory)).lm_path == model_directory / "state_dict.bin"


@pytest.mark.parametrize("name", ["lofi-style", "my-stereo-remixes", "melody"])
def test_a_directorys_name_says_nothing_about_its_model(debug_model: BaseModel, tmp_path: Path, name: str) -> None:
    shutil.copytree(debug_model.directory, tmp_path / name)
    assert find_model(str(tmp_path / name)).config == debug_model.config


@pytest.mark.parametrize("files", [(LM_FILE, CODEC_FILE), (CODEC_FILE,)])
def test_an_unsupported_model_is_refused_by_its_contents(model_directory: Path, files: tuple[str, ...]) -> None:
    checkpoint = torch.load(model_directory / LM_FILE, weights_only=True)
    config = OmegaConf.create(checkpoint["xp.cfg"])
    config.conditioners.self_wav = {"model": "style", "style": {}}
    torch.save({**checkpoint, "xp.cfg": OmegaConf.to_yaml(config)}, model_directory / LM_FILE)
    with refused(str(model_directory), "is a style checkpoint", "conditioners.self_wav", next_step="musicgen-large"):
        find_model(str(model_directory), files)


def test_an_unsupported_checkpoint_is_refused_by_name(hub: StandInHub) -> None:
    with refused("facebook/musicgen-style", "conditioned on", "MERT", next_step="facebook/musicgen-large"):
        find_model("facebook/musicgen-style")
    assert hub.requests == []


@pytest.mark.parametrize("missing", ["state_dict.bin", "compression_state_dict.bin"])
def test_a_missing_file_is_named(model_directory: Path, missing: str) -> None:
    (model_directory / missing).unlink()
    with refused(str(model_directory), f"no {missing}", next_step="audiocraft's format"):
        find_model(str(model_directory))


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    with refused("state_dict.bin", "compression_state_dict.bin", next_step="audiocraft's format"):
        find_model(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-model", "./no/such", "/no/such/model"])
def test_an_unknown_directory_is_named_without_asking_the_hub(hub: StandInHub, name: str) -> None:
    with refused(name, next_step="Hugging Face id"):
        find_model(name)
    assert hub.requests == []


def test_a_name_without_its_user_is_completed(hub: StandInHub) -> None:
    with refused("musicgen-larg", next_step="Did you mean facebook/musicgen-large?"):
        find_model("musicgen-larg")
    assert hub.requests == []


def test_an_unreachable_hub_is_named_with_what_works_without_it(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refused(
        "facebook/musicgen-large",
        "http://127.0.0.1:9 can't be reached",
        next_step="copy models--facebook--musicgen-large",
    ):
        find_model("facebook/musicgen-large")


def test_a_model_comes_from_the_hub(hub: StandInHub, debug_model: BaseModel) -> None:
    hub.add("facebook/musicgen-large", debug_model.directory, **{"README.md": b"r", "other.bin": b"o"})
    model = find_model("facebook/musicgen-large")
    assert model.identity == debug_model.identity.replace("debug", "facebook/musicgen-large")
    assert Path(model.text_encoder).is_relative_to(model.directory) and Path(model.text_encoder).is_dir()
    assert not {"README.md", "other.bin"} & set(hub.fetched())
    hub.requests.clear()
    assert find_model("facebook/musicgen-large") == model and hub.requests == []


def test_a_codec_comes_without_its_language_model(hub: StandInHub, debug_model: BaseModel) -> None:
    hub.add("facebook/musicgen-large", debug_model.directory)
    assert find_codec("facebook/musicgen-large").codec_path.read_bytes() == debug_model.codec_path.read_bytes()
    assert hub.fetched() == ["compression_state_dict.bin"]
    find_model("facebook/musicgen-large")
    assert hub.fetched().count("compression_state_dict.bin") == 1

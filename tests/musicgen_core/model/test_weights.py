from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from musicgen_core.errors import ModelError
from musicgen_core.model.audiocraft_format import from_audiocraft, read_checkpoint, to_audiocraft
from musicgen_core.model.configuration import read_lm_config
from musicgen_core.model.debug_model import debug_model_directory
from musicgen_core.model.decoder import DecoderConfig, MusicgenLM
from musicgen_core.model.local_files import CODEC_FILE, LM_FILE
from musicgen_core.model.pattern import delay
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_codec, find_model, load_lm
from tests.stand_in_hub import StandInHub


@contextlib.contextmanager
def refused(*found: str, next_step: str) -> Iterator[None]:
    """A ModelError of one line that says what was found and what to do."""
    with pytest.raises(ModelError) as error:
        yield
    assert [word for word in found if word not in error.value.found] == []
    assert next_step in error.value.next_step
    assert "\n" not in str(error.value)


def assert_same_state(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


# Conversion


@st.composite
def shapes(draw: st.DrawFn) -> DecoderConfig:
    small = st.integers(1, 3)
    heads = draw(small)
    return DecoderConfig(
        dim=2 * heads * draw(small),
        layers=draw(st.integers(1, 12)),  # two digits too
        heads=heads,
        ffn_dim=draw(small),
        text_dim=draw(small),
        codebooks=draw(st.integers(1, 11)),
        cardinality=draw(small),
    )


@settings(max_examples=25)
@given(shapes())
def test_converting_to_audiocraft_and_back_changes_nothing(shape: DecoderConfig) -> None:
    state = {name: torch.rand_like(tensor) for name, tensor in MusicgenLM(shape).state_dict().items()}
    theirs = to_audiocraft(state)
    assert_same_state(from_audiocraft(theirs), state)
    assert_same_state(to_audiocraft(from_audiocraft(theirs)), theirs)


def test_audiocrafts_own_weights_survive_the_round_trip(other_audiocraft_lm: Any) -> None:
    theirs = other_audiocraft_lm.state_dict()
    assert_same_state(to_audiocraft(from_audiocraft(theirs)), theirs)


@pytest.mark.parametrize("name", ["transformer.layers.0.self_attn.q_layer_norm.weight", "rope.weight"])
def test_a_weight_that_musicgen_does_not_have_is_named(name: str) -> None:
    with refused(name, next_step="facebook/musicgen"):
        from_audiocraft({name: torch.zeros(1)})


@torch.inference_mode()
def test_converted_weights_make_hugging_faces_musicgen_the_same_model(
    other_audiocraft_lm: Any, text_encoder: TextEncoder
) -> None:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    state = from_audiocraft(other_audiocraft_lm.state_dict())
    shape = read_lm_config(OmegaConf.to_yaml(other_audiocraft_lm.cfg), "audiocraft").decoder
    lm = MusicgenLM(shape).eval()
    lm.load_state_dict(state)
    config = MusicgenDecoderConfig(
        vocab_size=shape.cardinality,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        hidden_size=shape.dim,
        ffn_dim=shape.ffn_dim,
        num_codebooks=shape.codebooks,
    )
    theirs = MusicgenForCausalLM(config).eval()
    # The text projection sits outside Hugging Face's decoder.
    theirs.load_state_dict({k: v for k, v in state.items() if not k.startswith("enc_to_dec_proj")}, strict=True)

    sequence = delay(torch.randint(2048, (2, 4, 9), generator=torch.Generator().manual_seed(0)), shape.special)
    text = text_encoder.encode(["bells", "a fast breakbeat with a distorted bass line"])
    states, _ = lm.project_text(text)
    logits = theirs(sequence.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=text.mask.long())
    torch.testing.assert_close(lm(sequence, text), logits.logits.view(2, 4, -1, 2048), atol=1e-5, rtol=0)


# The debug model


def tensors_of(directory: Path) -> dict[str, dict[str, Tensor]]:
    from safetensors.torch import load_file

    lm, codec = (read_checkpoint(directory / f)["best_state"] for f in ("state_dict.bin", "compression_state_dict.bin"))
    return {"lm": lm, "codec": codec, "text_encoder": load_file(directory / "text_encoder" / "model.safetensors")}


def sha256_of_tensors(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_the_debug_model_does_not_depend_on_torchs_random_numbers(debug_model: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(1234)
    made, expected = tensors_of(debug_model_directory(tmp_path)), tensors_of(debug_model.directory)
    for part in ("lm", "codec", "text_encoder"):
        assert_same_state(made[part], expected[part])


def test_the_debug_model_is_made_once(tmp_path: Path) -> None:
    directory = debug_model_directory(tmp_path)
    (directory / "mark").touch()
    assert (debug_model_directory(tmp_path) / "mark").exists()
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize(
    ("part", "sha256"),
    [
        ("lm", "3e86f8e2342319d27d12989596a18971ad0391ea41e5e39558a61c0efedb28ba"),
        ("codec", "222b4c510add1cc1820387cff69551d8139e9e4833ae193adfed133d48297b5a"),
        ("text_encoder", "5463db81b02b699394719b3634a4d7510f891b055c647d0a22f8f3e65faf58f4"),
    ],
)
def test_the_debug_models_bits_are_these(debug_model: BaseModel, part: str, sha256: str) -> None:
    """Adapters and shards record these weights. If they must change, raise `local_files.DEBUG_VERSION` as well."""
    assert sha256_of_tensors(tensors_of(debug_model.directory)[part]) == sha256


def test_the_debug_model_is_found_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = find_model("debug")
    assert tmp_path in model.lm_path.parents
    assert model.lm_path.is_file() and model.codec_path.is_file() and Path(model.text_encoder).is_dir()


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


# What is refused


@pytest.fixture
def model_directory(debug_model: BaseModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(debug_model.directory, tmp_path / "model"))


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
    config.conditioners.self_wav = {"model": "chroma_stem", "chroma_stem": {"n_chroma": 12}}
    torch.save({**checkpoint, "xp.cfg": OmegaConf.to_yaml(config)}, model_directory / LM_FILE)
    with refused(str(model_directory), "is a melody checkpoint", "conditioners.self_wav", next_step="musicgen-large"):
        find_model(str(model_directory), files)


@pytest.mark.parametrize("variant", ["stereo", "melody"])
def test_unsupported_checkpoints_are_refused_by_name(hub: StandInHub, variant: str) -> None:
    with refused(f"facebook/musicgen-{variant}-large", next_step="facebook/musicgen-large"):
        find_model(f"facebook/musicgen-{variant}-large")
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


def test_an_unreachable_hub_is_named_with_what_works_without_it(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with refused("facebook/musicgen-large", "http://127.0.0.1:9 can't be reached", next_step="a local directory"):
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


@pytest.mark.parametrize("damage", ["truncated", "empty", "a web page", "another pickle"])
def test_a_damaged_file_is_named(model_directory: Path, damage: str) -> None:
    path = model_directory / "state_dict.bin"
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-100_000])
        case "empty":
            path.write_bytes(b"")
        case "a web page":
            path.write_text("<html>Not found</html>")
        case "another pickle":
            torch.save({"weights": torch.zeros(1)}, path)
    with refused(str(path), next_step="audiocraft exported" if damage == "another pickle" else "Fetch the file again"):
        load_lm(find_model(str(model_directory)))


def test_a_weight_that_is_missing_is_named(model_directory: Path) -> None:
    path = model_directory / "state_dict.bin"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["best_state"]["out_norm.weight"]
    torch.save(checkpoint, path)
    with refused(str(path), "model.decoder.layer_norm.weight", next_step="Fetch the file again"):
        load_lm(path)


def test_a_codec_in_the_language_models_place_is_refused(debug_model: BaseModel) -> None:
    with refused(str(debug_model.codec_path), next_step="facebook/musicgen-large"):
        load_lm(debug_model.codec_path)

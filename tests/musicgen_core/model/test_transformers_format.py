"""Models in transformers' format as base models, against transformers' MusicgenForConditionalGeneration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from musicgen_core.codec import Codec
from musicgen_core.codes import MONO
from musicgen_core.config import SamplingSettings
from musicgen_core.generation.engine import Engine
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.compression import codec_identity
from musicgen_core.model.decoder import delay
from musicgen_core.model.local_files import codec_here
from musicgen_core.model.lora import merged_checkpoint
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_codec, find_model, load_lm
from musicgen_core.seeds import streams_of
from tests.musicgen_core.model.adapters import SETTINGS, random_adapter
from tests.musicgen_core.model.conftest import refused
from tests.stand_in_hub import StandInHub
from tests.transformers_model import HfOracle, in_transformers

PROMPT, FRAMES, GUIDANCE = "slow piano", 20, 3.0
Edit = Callable[..., Path]


@pytest.fixture(scope="module")
def one(debug_model: BaseModel) -> Any:
    """Return a model that was fine-tuned whole: text encoder, codec and language model differ from any other."""
    model = in_transformers(debug_model).eval()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.generation_config.guidance_scale = 2.5
    return model


@pytest.fixture(scope="module")
def directories(one: Any, debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return it in one file and in several, with its tokenizer. Read-only."""
    from transformers import AutoTokenizer

    found = {}
    for name, most in (("single", "1GB"), ("sharded", "1MB")):
        found[name] = tmp_path_factory.mktemp(name)
        one.save_pretrained(found[name], max_shard_size=most)
        AutoTokenizer.from_pretrained(debug_model.text_encoder).save_pretrained(found[name])
    assert len(list(found["sharded"].glob("model-*-of-*.safetensors"))) > 2
    return found


@pytest.fixture(params=["single", "sharded"])
def directory(directories: dict[str, Path], request: pytest.FixtureRequest) -> Path:
    return directories[request.param]


@pytest.fixture
def edit(directories: dict[str, Path], tmp_path: Path) -> Edit:
    """Return a copy of the model with other settings in its config.json, by section."""

    def change(name: str = "single", **sections: Any) -> Path:
        copied = Path(shutil.copytree(directories[name], tmp_path / "edited"))
        config = json.loads((copied / "config.json").read_text())
        for key, value in sections.items():
            config[key] = {**config[key], **value} if isinstance(value, dict) else value
        (copied / "config.json").write_text(json.dumps(config))
        return copied

    return change


def codes_here(directory: Path) -> Tensor:
    """Return this project's greedy codes, in fp64 to avoid ties by rounding."""
    model = find_model(str(directory))
    text = TextEncoder(model.text_encoder)
    text.t5.double()
    engine = Engine(load_lm(model, dtype=torch.float64), text, GUIDANCE)
    settings = SamplingSettings(duration=FRAMES / 50, greedy=True)
    return engine.generate([PROMPT], settings, streams_of(0, [PROMPT]))[0]


def test_logits_and_greedy_codes_are_those_of_transformers(directory: Path) -> None:
    from transformers import MusicgenForConditionalGeneration

    reference = MusicgenForConditionalGeneration.from_pretrained(directory).eval()
    model = find_model(str(directory))
    text = TextEncoder(model.text_encoder)
    sequence = delay(torch.randint(2048, (1, 4, 12), generator=torch.Generator().manual_seed(0)), MONO)
    oracle = HfOracle(text.tokenizer, sequence, PROMPT, FRAMES, GUIDANCE)
    with torch.inference_mode():
        ours = load_lm(model)(sequence, text.encode([PROMPT]))[0]
    expected = oracle.logits(reference)
    assert ((ours - expected).abs().max() / expected.abs().max()).item() < 1e-5
    assert torch.equal(codes_here(directory), oracle.codes(reference))


def test_the_codec_is_that_of_the_files(directory: Path, one: Any) -> None:
    model = find_codec(str(directory))
    music = torch.rand(1, 1, 6400, generator=torch.Generator().manual_seed(0)) - 0.5
    codec = Codec(model)
    with torch.inference_mode():
        expected = one.audio_encoder.encode(music).audio_codes[0]
    assert torch.equal(codec.encode(music), expected)
    assert codec.identity == codec_identity(model) == codec_here(str(directory))


def test_settings_are_those_of_the_files(directory: Path) -> None:
    config = find_model(str(directory)).config
    assert (config.decoder.dim, config.decoder.layers, config.decoder.text_dim, config.t5) == (64, 2, 512, "t5-small")
    assert (config.inference_coefficient, config.training_dropout) == (2.5, 0.3)


def test_identities_do_not_depend_on_how_weights_are_sharded(directories: dict[str, Path], edit: Edit) -> None:
    single, sharded = (find_model(str(path)) for path in directories.values())
    assert single.identity == sharded.identity and codec_identity(single) == codec_identity(sharded)
    tuned = edit()
    weights = load_file(tuned / "model.safetensors")
    weights["text_encoder.shared.weight"] += 1
    save_file(weights, tuned / "model.safetensors")
    other = find_model(str(tuned))
    assert other.identity != single.identity and codec_identity(other) == codec_identity(single)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(directories: dict[str, Path], tmp_path: Path, dtype: torch.dtype) -> None:
    half = Path(shutil.copytree(directories["single"], tmp_path / "half"))
    state = {name: one.to(dtype) for name, one in load_file(half / "model.safetensors").items()}
    save_file(state, half / "model.safetensors")
    loaded = load_lm(find_model(str(half))).state_dict()
    assert all(torch.equal(loaded[name], state[_theirs(name)].float()) for name in loaded)


def _theirs(name: str) -> str:
    return name if name.startswith("enc_to_dec_proj.") else f"decoder.{name}"


def test_positions_that_older_versions_stored_are_ignored(edit: Edit) -> None:
    copied = edit()
    state = load_file(copied / "model.safetensors")
    state["decoder.model.decoder.embed_positions.weights"] = torch.zeros(2048, 64)
    save_file(state, copied / "model.safetensors")
    load_lm(find_model(str(copied)))


def test_full_models_of_a_training_run_are_checkpoints_of_audiocraft(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    model = find_model(str(directories["sharded"]))
    adapter = random_adapter(model, SETTINGS)
    torch.save(merged_checkpoint(model, _without_effect(adapter)), tmp_path / "full.pt")
    loaded, expected = load_lm(tmp_path / "full.pt"), load_lm(model)
    assert loaded.config == expected.config
    assert all(torch.equal(one, expected.state_dict()[name]) for name, one in loaded.state_dict().items())


def _without_effect(adapter: Adapter) -> Adapter:
    for tensor in adapter.lora.values():
        tensor.zero_()
    return adapter


@pytest.mark.parametrize(
    ("sections", "named", "kind"),
    [
        ({"decoder": {"audio_channels": 2}}, "decoder.num_codebooks is 4", "not supported"),
        ({"model_type": "musicgen_melody", "num_chroma": 24}, "num_chroma is 24", "not supported"),
        ({"model_type": "musicgen_melody", "chroma_length": 0}, "chroma_length is 0", "not supported"),
        ({"model_type": "t5"}, 'its model_type is "t5"', "not a MusicGen"),
        ({"decoder": {"activation_function": "relu"}}, 'decoder.activation_function is "relu"', "not supported"),
        ({"decoder": {"scale_embedding": True}}, "decoder.scale_embedding is true", "not supported"),
        ({"decoder": {"vocab_size": 4096}}, "decoder.vocab_size is 4096", "not supported"),
        ({"decoder": {"hidden_size": "64"}}, 'decoder.hidden_size is "64"', "not supported"),
        ({"decoder": {"num_attention_heads": 5}}, "num_attention_heads 5", "not supported"),
        ({"decoder": {"hidden_size": 512}}, "text_encoder.d_model is 512, as is", "not supported"),
        ({"text_encoder": {"d_model": 640}}, "text_encoder.d_model is 640", "not supported"),
        ({"text_encoder": {"model_type": "bert"}}, 'text_encoder.model_type is "bert"', "not supported"),
        ({"audio_encoder": {"normalize": True}}, "audio_encoder.normalize is true", "not supported"),
        ({"audio_encoder": {"model_type": "dac"}}, 'audio_encoder.model_type is "dac"', "not supported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unsupported_settings_are_refused_by_name(sections: dict[str, Any], named: str, kind: str, edit: Edit) -> None:
    copied = edit(**sections)
    with refused(str(copied / "config.json"), named, kind, next_step="musicgen-large"):
        find_model(str(copied))


@pytest.mark.parametrize("damage", ["truncated", "empty", "a web page"])
def test_a_damaged_file_of_weights_is_named(edit: Edit, damage: str) -> None:
    path = edit() / "model.safetensors"
    path.write_bytes({"truncated": path.read_bytes()[:-100_000], "empty": b"", "a web page": b"<html>no"}[damage])
    model = find_model(str(path.parent))
    for use in (load_lm, lambda model: model.identity, codec_identity, lambda model: TextEncoder(model.text_encoder)):
        with refused(str(path), next_step="Fetch the file again"):
            use(model)
    assert codec_here(str(path.parent)) is None


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("decoder.model.decoder.layer_norm.weight", load_lm),
        ("text_encoder.encoder.final_layer_norm.weight", lambda model: TextEncoder(model.text_encoder)),
        ("audio_encoder.decoder.layers.0.conv.bias", Codec),
    ],
)
def test_a_tensor_that_is_missing_is_named(edit: Edit, name: str, use: Callable[[BaseModel], Any]) -> None:
    copied = edit()
    state = load_file(copied / "model.safetensors")
    del state[name]
    save_file(state, copied / "model.safetensors")
    with refused(name.removeprefix("decoder."), str(copied), next_step="Fetch the file again"):
        use(find_model(str(copied)))


def test_weights_that_are_not_numbers_are_named(edit: Edit) -> None:
    copied = edit()
    state = load_file(copied / "model.safetensors")
    state["decoder.lm_heads.0.weight"][0, 0] = torch.nan
    save_file(state, copied / "model.safetensors")
    with refused("lm_heads.0.weight", "NaN", next_step="Fetch the file again"):
        load_lm(find_model(str(copied)))


def test_missing_shards_and_damaged_indices_are_named(edit: Edit) -> None:
    copied = edit("sharded")
    shard = sorted(copied.glob("model-*.safetensors"))[1]
    shard.unlink()
    with refused(shard.name, next_step="Fetch the file again"):
        find_model(str(copied))
    (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with refused("model.safetensors.index.json", next_step="Fetch the file again"):
        find_model(str(copied))
    (copied / "model.safetensors.index.json").unlink()
    with refused("no model.safetensors", next_step="save_pretrained"):
        find_model(str(copied))


def test_settings_of_parts_that_name_code_are_ignored(edit: Edit, tmp_path: Path) -> None:
    code = {"auto_map": {"AutoModel": "evil--evil"}, "_attn_implementation": "evil/kernel"}
    copied = edit(text_encoder=code, audio_encoder=code)
    TextEncoder(find_model(str(copied)).text_encoder)
    Codec(find_codec(str(copied)))


@pytest.mark.parametrize("name", ["single", "sharded"])
def test_only_the_needed_files_come_from_the_hub(hub: StandInHub, directories: dict[str, Path], name: str) -> None:
    hub.add("somebody/tuned", directories[name], **{"README.md": b"r", "pytorch_model.bin": b"o", "optimizer.pt": b"o"})
    model = find_model("somebody/tuned")
    local = find_model(str(directories[name]))
    assert model.identity == local.identity.replace("local", "somebody/tuned")
    assert not {"README.md", "pytorch_model.bin", "optimizer.pt"} & set(hub.fetched())
    assert len(hub.fetched()) == len(set(hub.fetched()))
    hub.requests.clear()
    assert find_model("somebody/tuned") == model and hub.requests == []
    TextEncoder(model.text_encoder)


def test_an_unsupported_model_of_the_hub_is_refused_before_its_weights_come(hub: StandInHub, edit: Edit) -> None:
    hub.add("somebody/tuned", edit(decoder={"scale_embedding": True}))
    with refused("decoder.scale_embedding is true", next_step="musicgen-large"):
        find_model("somebody/tuned")
    assert hub.fetched() == ["config.json"]


def test_a_model_in_both_formats_is_read_in_that_of_audiocraft(
    hub: StandInHub, debug_model: BaseModel, directories: dict[str, Path]
) -> None:
    files = {path.name: path.read_bytes() for path in directories["single"].iterdir()}
    hub.add("somebody/both", debug_model.directory, **files)
    assert find_model("somebody/both").identity == debug_model.identity.replace("debug", "somebody/both")
    assert "model.safetensors" not in hub.fetched()


def test_without_a_tokenizer_that_of_its_t5_is_used(
    hub: StandInHub, debug_model: BaseModel, directories: dict[str, Path], edit: Edit
) -> None:
    copied = edit()
    for path in copied.glob("tokenizer*"):
        path.unlink()
    hub.add("t5-small", Path(debug_model.text_encoder))
    found = TextEncoder(find_model(str(copied)).text_encoder).encode([PROMPT])
    expected = TextEncoder(find_model(str(directories["single"])).text_encoder).encode([PROMPT])
    assert torch.equal(found.states, expected.states) and "model.safetensors" not in hub.fetched()

"""`export --format peft` and PEFT directories as `--adapter`, against the real peft on the real transformers."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.errors import AdapterError
from musicgen_core.exporting.export import export
from musicgen_core.model.lora import (
    Adapter,
    AdapterConfig,
    add_lora,
    find_adapter,
    load_adapter,
    load_merged,
    merged_checkpoint,
    set_adapter_state,
)
from musicgen_core.model.weights import BaseModel, load_lm

LogitsOf = Callable[[Adapter | None], Tensor]
Save = Callable[[Adapter], Path]
TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(autouse=True)
def _peft_warns_of_nothing() -> Iterator[None]:
    """peft only warns of unexpected or missing keys; make that an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=r".*(missing|unexpected|Unexpected|not found).*")
        yield


def near(found: Tensor, expected: Tensor) -> bool:
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    print(f"largest difference: {difference:.1e} of the largest logit")  # what bench/RESULTS.md tells; -rP shows it
    return difference < 1e-5


# Exported


def test_peft_loads_exported_adapters_with_our_logits_and_codes(
    any_adapter: Adapter, saved: Save, hf_model: Any, hf: Any, our_logits: LogitsOf, our_codes: LogitsOf, tmp_path: Path
) -> None:
    from peft import PeftModel

    export(saved(any_adapter), tmp_path / "out", "peft")
    untouched = hf.logits(hf_model)
    model = PeftModel.from_pretrained(hf_model, str(tmp_path / "out")).eval()
    found, expected = hf.logits(model), our_logits(any_adapter)
    assert near(found, expected) and not near(found, untouched)
    codes = hf.codes(model)
    assert torch.equal(codes, our_codes(any_adapter)) and not torch.equal(codes, our_codes(None))


def test_an_exported_adapter_comes_back_as_it_was(any_adapter: Adapter, saved: Save, tmp_path: Path) -> None:
    export(saved(any_adapter), tmp_path / "out", "peft")
    found = load_adapter(find_adapter(tmp_path / "out"))
    assert found.lora.keys() == any_adapter.lora.keys()
    assert all(torch.equal(found.lora[name], any_adapter.lora[name]) for name in found.lora)
    assert sorted(found.config.pop("target_modules")) == sorted(any_adapter.config["target_modules"])
    config = {name: value for name, value in any_adapter.config.items() if name != "target_modules"}
    assert dataclasses.replace(found, lora={}) == dataclasses.replace(any_adapter, lora={}, config=config)


@pytest.mark.parametrize(
    ("base_model", "named"),
    [
        ("facebook/musicgen-large@sha256:0123456789abcdef", "facebook/musicgen-large"),
        ("local@sha256:0123456789abcdef", None),
    ],
)
def test_the_base_model_is_named_by_its_id_on_the_hub(
    adapter: Adapter, saved: Save, tmp_path: Path, base_model: str, named: str | None
) -> None:
    export(saved(dataclasses.replace(adapter, base_model=base_model)), tmp_path / "out", "peft")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == named
    assert config["auto_mapping"]["base_model_class"] == "MusicgenForConditionalGeneration"


# Made by peft

MadeByPeft = Callable[..., Any]


@pytest.fixture
def made_by_peft(hf_model: Any, tmp_path: Path) -> MadeByPeft:
    """Return a factory: peft's LoraConfig settings → Hugging Face's model with such an adapter, saved in tmp_path."""
    from peft import LoraConfig, get_peft_model

    def make(on: Any = hf_model, pickled: bool = False, **settings: Any) -> Any:
        model = get_peft_model(on, LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": TARGETS, **settings}))
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = 0.1 * torch.randn(parameter.shape, generator=generator)
                parameter.data = parameter.data * (1 + noise) if "magnitude" in name else noise
        model.save_pretrained(str(tmp_path / "peft"))
        if pickled:  # as older versions of peft wrote it
            from safetensors.torch import load_file

            weights = tmp_path / "peft" / "adapter_model.safetensors"
            torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
            weights.unlink()
        return model.eval()

    return make


def of(folder: Path) -> Adapter:
    return load_adapter(find_adapter(folder))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 7},
        {"use_dora": True},
        {"pickled": True},
        {"target_modules": ["v_proj", "decoder.model.decoder.layers.1.fc2"]},
        {"target_modules": r".*decoder\.layers\.\d\.encoder_attn\.(q|v)_proj"},
        {"target_modules": ["fc1", "q_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
        {"exclude_modules": ["encoder_attn.q_proj"]},
        {"init_lora_weights": "gaussian", "lora_dropout": 0.3},
        {"rank_pattern": {"fc1": 2, "layers.0.self_attn.q_proj": 6}, "alpha_pattern": {"fc2": 3, "fc1": 5}},
        {"rank_pattern": {"fc1": 2}, "alpha_pattern": {"k_proj": 3}, "use_rslora": True, "use_dora": True},
    ],
    ids=str,
)
def test_an_adapter_made_by_peft_gives_the_same_logits_here(
    made_by_peft: MadeByPeft, hf: Any, our_logits: LogitsOf, tmp_path: Path, settings: dict[str, Any]
) -> None:
    expected = hf.logits(made_by_peft(**settings))
    assert near(our_logits(of(tmp_path / "peft")), expected)
    assert not near(our_logits(None), expected)


def test_a_peft_adapter_of_the_lm_alone_gives_the_same_logits(
    made_by_peft: MadeByPeft, hf_model: Any, hf: Any, our_logits: LogitsOf, tmp_path: Path
) -> None:
    made_by_peft(on=hf_model.decoder)  # it changes hf_model's own layers
    assert near(our_logits(of(tmp_path / "peft")), hf.logits(hf_model))


def test_an_adapter_in_half_precision_is_used_as_peft_uses_it(
    made_by_peft: MadeByPeft, hf: Any, our_logits: LogitsOf, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = made_by_peft()
    weights = tmp_path / "peft" / "adapter_model.safetensors"
    half = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    save_file(half, weights, metadata={"format": "pt", "epoch": "of another program"})
    model.load_adapter(str(tmp_path / "peft"), "rounded", autocast_adapter_dtype=True)
    model.set_adapter("rounded")
    adapter = of(tmp_path / "peft")
    assert near(our_logits(adapter), hf.logits(model.eval()))
    assert {tensor.dtype for tensor in adapter.lora.values()} == {torch.float32} and adapter.epoch == 0


def test_a_pattern_for_every_block_is_the_same_settings_as_names(made_by_peft: MadeByPeft, tmp_path: Path) -> None:
    made_by_peft(target_modules=r".*\.(self_attn|encoder_attn)\.(q|k|v|out)_proj|.*\.fc.")
    of(tmp_path / "peft").check_scale(AdapterConfig(4, 16), "given")


def test_training_starts_from_an_adapter_made_by_peft(
    made_by_peft: MadeByPeft, debug_model: BaseModel, hf: Any, our_logits: LogitsOf, tmp_path: Path
) -> None:
    made_by_peft()
    adapter = of(tmp_path / "peft")
    adapter.check_base(debug_model, "given")
    adapter.check_scale(AdapterConfig(4, 16, 0.1), "given")
    trained = add_lora(load_lm(debug_model), AdapterConfig(4, 16, 0.1))
    set_adapter_state(trained, adapter.lora, "given")  # raises where a name or a shape differs
    changed = [name for name, parameter in trained.named_parameters() if "lora_B" in name and parameter.any()]
    assert len(changed) == 20


def test_it_is_found_by_its_files_too_and_in_an_object_store(
    made_by_peft: MadeByPeft, bucket: Any, tmp_path: Path
) -> None:
    made_by_peft()
    storage.upload_tree(tmp_path / "peft", bucket / "peft")
    expected = of(tmp_path / "peft")
    for place in (tmp_path / "peft" / "adapter_config.json", bucket / "peft"):
        found = load_adapter(find_adapter(str(place)))
        assert found.config == expected.config
        assert all(torch.equal(found.lora[name], expected.lora[name]) for name in expected.lora)


# Refused


def test_an_adapter_on_other_modules_is_refused_by_their_names(made_by_peft: MadeByPeft, tmp_path: Path) -> None:
    made_by_peft(target_modules=["q_proj", "q", "embed_tokens.0"])
    with pytest.raises(AdapterError) as refused:
        of(tmp_path / "peft")
    assert "decoder.model.decoder.embed_tokens.0, text_encoder.encoder.block.0" in refused.value.found
    assert "self_attn.q_proj" in refused.value.next_step


def test_the_text_projection_is_no_target_here(made_by_peft: MadeByPeft, tmp_path: Path) -> None:
    made_by_peft(target_modules=["q_proj", "enc_to_dec_proj"])
    with pytest.raises(AdapterError, match="changes enc_to_dec_proj, which"):
        of(tmp_path / "peft")


def test_saved_modules_are_refused(made_by_peft: MadeByPeft, tmp_path: Path) -> None:
    made_by_peft(modules_to_save=["enc_to_dec_proj"])
    with pytest.raises(AdapterError, match="modules_to_save") as refused:
        of(tmp_path / "peft")
    assert "without modules_to_save" in refused.value.next_step


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"peft_type": "IA3"}, "holds no LoRA adapter .its peft_type is IA3"),
        ({"peft_type": None}, "holds no LoRA adapter"),
        ({"r": None}, r"no usable r .None"),
        ({"lora_alpha": "16"}, r"no usable lora_alpha .'16'"),
        ({"target_modules": None}, "no usable target_modules"),
        ({"init_lora_weights": "pissa"}, "base weights that init_lora_weights 'pissa' changed"),
        ({"layer_replication": [[0, 2]], "lora_bias": True}, "uses layer_replication, lora_bias, which can't"),
        ({"of_a_later_peft": {"on": True}}, "uses of_a_later_peft"),
    ],
    ids=str,
)
def test_variants_other_than_plain_lora_are_refused(
    made_by_peft: MadeByPeft, tmp_path: Path, values: dict[str, Any], found: str
) -> None:
    made_by_peft()
    change_config(tmp_path / "peft", **values)
    with pytest.raises(AdapterError, match=found) as refused:
        of(tmp_path / "peft")
    assert str(tmp_path / "peft") in refused.value.found and refused.value.next_step


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_peft_directory_is_refused(made_by_peft: MadeByPeft, tmp_path: Path, missing: str) -> None:
    made_by_peft()
    (tmp_path / "peft" / missing).unlink()
    with pytest.raises(AdapterError, match=f"no {missing}") as refused:
        find_adapter(tmp_path / "peft")
    assert refused.value.next_step


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def test_code_in_a_bin_is_never_run(made_by_peft: MadeByPeft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_by_peft()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "peft" / "adapter_model.safetensors").unlink()
    torch.save({"base_model.model.x": Malicious()}, tmp_path / "peft" / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin can't be read") as refused:
        of(tmp_path / "peft")
    assert not (tmp_path / "ran").exists()
    assert "safetensors" in refused.value.next_step


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"\x00" * 64])
def test_a_damaged_file_is_named(made_by_peft: MadeByPeft, tmp_path: Path, file: str, content: bytes) -> None:
    made_by_peft()
    (tmp_path / "peft" / file).write_bytes(content)
    with pytest.raises(AdapterError, match=str(tmp_path / "peft")):
        of(tmp_path / "peft")


def test_an_adapter_of_another_size_of_model_is_refused(
    made_by_peft: MadeByPeft, debug_model: BaseModel, tmp_path: Path
) -> None:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    for shape in ({"hidden_size": 96, "num_hidden_layers": 2}, {"hidden_size": 64, "num_hidden_layers": 3}):
        larger = MusicgenForCausalLM(MusicgenDecoderConfig(num_attention_heads=4, ffn_dim=256, **shape))
        made_by_peft(on=larger)
        adapter = of(tmp_path / "peft")
        for use in (
            lambda: load_merged(debug_model, adapter, "cpu", torch.float32),  # noqa: B023
            lambda: merged_checkpoint(debug_model, adapter),  # noqa: B023
        ):
            with pytest.raises(AdapterError, match="doesn't fit the model") as refused:
                use()
            assert "Use the model that it was trained on" in refused.value.next_step


def test_an_adapter_of_fewer_layers_is_refused(
    made_by_peft: MadeByPeft, debug_model: BaseModel, tmp_path: Path
) -> None:
    from transformers import MusicgenDecoderConfig, MusicgenForCausalLM

    made_by_peft(
        on=MusicgenForCausalLM(
            MusicgenDecoderConfig(num_attention_heads=4, ffn_dim=256, hidden_size=64, num_hidden_layers=1)
        )
    )
    with pytest.raises(AdapterError, match="doesn't fit the model"):
        merged_checkpoint(debug_model, of(tmp_path / "peft"))


def test_an_adapter_for_another_published_model_is_refused(
    made_by_peft: MadeByPeft, debug_model: BaseModel, tmp_path: Path
) -> None:
    made_by_peft()
    change_config(tmp_path / "peft", base_model_name_or_path="facebook/musicgen-small")
    adapter = of(tmp_path / "peft")
    adapter.check_base(debug_model, "given")  # whose name tells nothing of its weights
    adapter.check_base(BaseModel("facebook/musicgen-small", debug_model.directory), "given")
    with pytest.raises(AdapterError, match=r"trained on facebook/musicgen-small, but") as refused:
        adapter.check_base(BaseModel("facebook/musicgen-large", debug_model.directory), "given")
    assert refused.value.next_step == "Give --model facebook/musicgen-small"

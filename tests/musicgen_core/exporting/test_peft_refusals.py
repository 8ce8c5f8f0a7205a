"""PEFT directories that can't be used: other modules, variants or models, missing or damaged files, code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_core.errors import AdapterError
from musicgen_core.model.adapters import find_adapter
from musicgen_core.model.lora import load_merged, merged_checkpoint
from musicgen_core.model.weights import BaseModel
from tests.musicgen_core.exporting.conftest import MadeByPeft, of


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

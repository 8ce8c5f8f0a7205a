"""`export --format huggingface` against transformers' MusicgenForConditionalGeneration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from musicgen_core.codec import Codec
from musicgen_core.exporting import transformers_directory
from musicgen_core.exporting.export import export
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.lora import load_merged
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, find_model, load_lm
from tests.fixture_types import Save
from tests.musicgen_core.exporting.conftest import HF_NAME, PLAIN, PROMPT, near, random_adapter


def loaded(directory: Path) -> Any:
    """Return transformers' model of a directory; a weight that is missing or unknown fails."""
    from transformers import MusicgenForConditionalGeneration

    model, loading = MusicgenForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    assert not any(loading.values()), loading
    return model.eval()


def test_transformers_gives_our_logits_and_codes(
    any_adapter: Adapter,
    saved: Save,
    hf: Any,
    our_logits: Callable[..., Tensor],
    our_codes: Callable[..., Tensor],
    tmp_path: Path,
) -> None:
    export(saved(any_adapter), tmp_path / "out", "huggingface")
    model = loaded(tmp_path / "out")
    assert near(hf.logits(model), our_logits(any_adapter))
    codes = hf.codes(model)
    assert torch.equal(codes, our_codes(any_adapter)) and not torch.equal(codes, our_codes(None))


def test_codec_and_processor_are_those_of_the_base_model(
    adapter: Adapter, saved: Save, debug_model: BaseModel, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    from transformers import AutoProcessor

    export(saved(adapter), tmp_path / "out", "huggingface")
    music = torch.rand(1, 1, 6400, generator=torch.Generator().manual_seed(0)) - 0.5
    encodec = loaded(tmp_path / "out").audio_encoder
    with torch.inference_mode():
        assert torch.equal(encodec.encode(music).audio_codes[0], Codec(debug_model).encode(music))
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.feature_extractor.sampling_rate == 32_000
    found = processor(text=[PROMPT, "drums"], padding=True, return_tensors="pt")
    expected = text_encoder.tokenizer([PROMPT, "drums"], padding=True, return_tensors="pt")
    assert torch.equal(found["input_ids"], expected["input_ids"])


def test_settings_are_those_of_the_base_model_and_name_no_path(
    adapter: Adapter, saved: Save, debug_model: BaseModel, tmp_path: Path
) -> None:
    exported = export(saved(adapter), tmp_path / "out", "huggingface")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {name: generation.get(name) for name in ("guidance_scale", "do_sample", "max_length", "pad_token_id")} == {
        "guidance_scale": 3.0,
        "do_sample": True,
        "max_length": 1500,
        "pad_token_id": 2048,
    }
    texts = [(tmp_path / "out" / name).read_text() for name in exported.files if name.endswith(".json")]
    assert not [text for text in texts if str(debug_model.directory.parent) in text]
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} < exported.files.keys()


def test_the_directory_is_a_model_here_too(
    adapter: Adapter, saved: Save, sequence: Tensor, our_logits: Any, tmp_path: Path
) -> None:
    export(saved(adapter), tmp_path / "out", "huggingface")
    model = find_model(str(tmp_path / "out"))
    with torch.inference_mode():
        found = load_lm(model)(sequence, TextEncoder(model.text_encoder).encode([PROMPT]))[0]
    torch.testing.assert_close(found, our_logits(adapter), atol=1e-5, rtol=0)


def test_large_models_are_written_in_several_files(
    adapter: Adapter,
    saved: Save,
    hf: Any,
    our_logits: Callable[..., Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transformers_directory, "LARGEST_FILE", "2MB")
    exported = export(saved(adapter), tmp_path / "out", "huggingface")
    sizes = [size for name, size in exported.files.items() if name.endswith(".safetensors")]
    assert len(sizes) > 2 and max(sizes) < 2_100_000
    assert near(hf.logits(loaded(tmp_path / "out")), our_logits(adapter))


def test_weights_keep_their_precision_and_are_loaded_in_fp32(
    debug_model: BaseModel, saved: Save, hf: Any, sequence: Tensor, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(debug_model.directory, tmp_path / "half"))
    checkpoint = torch.load(directory / "state_dict.bin", weights_only=True)
    checkpoint["best_state"] = {name: one.half() for name, one in checkpoint["best_state"].items()}
    torch.save(checkpoint, directory / "state_dict.bin")
    base = find_model(str(directory))
    adapter = random_adapter(base, PLAIN)
    export(saved(adapter), tmp_path / "out", "huggingface", model=str(directory))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    precisions = {name.partition(".")[0]: one.dtype for name, one in weights.items()}
    assert precisions["decoder"] == torch.float16 and precisions["text_encoder"] == torch.float32
    model = loaded(tmp_path / "out")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        merged = load_lm(find_model(str(tmp_path / "out")))
        ours = merged(sequence, text_encoder.encode([PROMPT]))[0]
        in_fp32 = load_merged(base, adapter, "cpu", torch.float32)(sequence, text_encoder.encode([PROMPT]))[0]
    assert near(hf.logits(model), ours)
    assert ((ours - in_fp32).abs().max() / in_fp32.abs().max()).item() < 0.01  # rounded to half after the merge


@pytest.mark.parametrize("name", ["demo", HF_NAME])
def test_other_base_models_are_exported(name: str, hf_directory: Path, saved: Save, tmp_path: Path) -> None:
    base = find_model(name if name == "demo" else str(hf_directory / name))
    adapter = random_adapter(base, PLAIN)
    export(saved(adapter), tmp_path / "out", "huggingface", model=base.name)
    model, text = loaded(tmp_path / "out"), TextEncoder(base.text_encoder)
    codes = torch.randint(base.config.decoder.cardinality, (1, 4, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours = load_lm(find_model(str(tmp_path / "out")))(codes, text.encode([PROMPT]))[0]
        merged = load_merged(base, adapter, "cpu", torch.float32)(codes, text.encode([PROMPT]))[0]
        assert ((ours - merged).abs().max() / merged.abs().max()).item() < 1e-3  # demo is rounded to half
        inputs = text.tokenizer([PROMPT], return_tensors="pt")
        assert near(model(**inputs, decoder_input_ids=codes.flatten(0, 1)).logits, ours)
        music = torch.rand(1, 1, 6400, generator=torch.Generator().manual_seed(0)) - 0.5
        assert torch.equal(model.audio_encoder.encode(music).audio_codes[0], Codec(base).encode(music))

"""Full models: base and adapter merged, in stock audiocraft's format."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from threading import Event

import pytest
import torch

from musicgen_core import storage
from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.codes import MONO
from musicgen_core.model.adapters import Adapter
from musicgen_core.model.decoder import delay
from musicgen_core.model.lora import load_merged, merged_checkpoint
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.files.full_models import write_full_model


@pytest.fixture(scope="module")
def fp16_model(debug_model: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """The debug model with its language model in half precision, as the real ones are published."""
    directory = Path(shutil.copytree(debug_model.directory, tmp_path_factory.mktemp("model") / "half"))
    checkpoint = torch.load(directory / "state_dict.bin", weights_only=True)
    checkpoint["best_state"] = {name: tensor.half() for name, tensor in checkpoint["best_state"].items()}
    torch.save(checkpoint, directory / "state_dict.bin")
    return BaseModel("half", directory)


def test_stock_audiocraft_loads_a_full_model_with_our_logits(
    debug_model: BaseModel, any_adapter: Adapter, t5_directory: Path, text_encoder: TextEncoder, tmp_path: Path
) -> None:
    path = storage.as_path(tmp_path / "final_model.pt")
    write_full_model({**merged_checkpoint(debug_model, any_adapter), "resume": vars(any_adapter)}, path, Event())
    loaders, conditioners = (import_audiocraft(f"audiocraft.{m}") for m in ("models.loaders", "modules.conditioners"))
    with contextlib.chdir(t5_directory):
        theirs = loaders.load_lm_model(str(path))
    codes = torch.randint(2048, (1, 4, 12), generator=torch.Generator().manual_seed(0))
    attributes = [conditioners.ConditioningAttributes(text={"description": "slow piano"})]
    with torch.inference_mode():
        expected = theirs.compute_predictions(codes, attributes)
        text = text_encoder.encode(["slow piano"])
        logits = load_merged(debug_model, any_adapter, "cpu", torch.float32)(delay(codes, MONO, steps=12), text)
        from_file = load_lm(Path(str(path)))(delay(codes, MONO, steps=12), text)
    for k in range(4):
        valid = expected.mask[0, k]
        for ours in (logits, from_file):
            torch.testing.assert_close(
                ours[0, k].roll(-k, dims=0)[valid], expected.logits[0, k][valid], atol=1e-5, rtol=0
            )


def test_a_full_model_keeps_the_bases_precision_and_is_rounded_once(fp16_model: BaseModel, adapter: Adapter) -> None:
    half = merged_checkpoint(fp16_model, adapter)["best_state"]
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    exact = load_merged(fp16_model, adapter, "cpu", torch.float64).state_dict()["model.decoder.layers.1.fc1.weight"]
    difference = half["transformer.layers.1.linear1.weight"].double() - exact
    assert difference.abs().max() <= exact.abs().max() * 2**-11 * 1.01


def test_a_full_model_has_the_bases_names_and_what_no_adapter_touches(debug_model: BaseModel, adapter: Adapter) -> None:
    base = torch.load(debug_model.lm_path, weights_only=True)
    merged = merged_checkpoint(debug_model, adapter)
    assert merged.keys() == base.keys() and merged["xp.cfg"] == base["xp.cfg"]
    assert merged["best_state"].keys() == base["best_state"].keys()
    changed = {n for n, t in merged["best_state"].items() if not torch.equal(t, base["best_state"][n])}
    assert changed == {n for n in base["best_state"] if n.startswith("transformer.layers.") and "norm" not in n}

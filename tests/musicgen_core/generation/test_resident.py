"""A model in memory renders what a model loaded for each request renders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from musicgen_core import storage
from musicgen_core.errors import AdapterError, Cancelled, ConfigError
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render, render_with
from musicgen_core.generation.resident import ResidentModel, load_model
from musicgen_core.model.adapters import Adapter, save_adapter
from musicgen_core.model.weights import BaseModel
from tests.musicgen_core.generation.rendered_files import PROMPTS, codes_of, names_in, sidecar_of


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_in(folder) if name.endswith(("wav", "npy"))}


@pytest.mark.parametrize("keep_base", [False, True])
def test_requests_to_one_model_make_what_each_alone_makes(
    request_for: Any, adapter: Path, tmp_path: Path, keep_base: bool
) -> None:
    strengths = ("", f"{adapter}:0.5", str(adapter), "", f"{adapter}:-1")
    resident = load_model(request_for(prompts=PROMPTS[:1]), keep_base)
    for number, given in enumerate(strengths):
        asked = {"adapter": given, "prompts": PROMPTS[:1], "save_codes": True, "settings": {"seed": number}}
        render_with(resident, request_for("resident", **asked))
        render(request_for("alone", **asked))
    assert names_in(tmp_path / "resident") == names_in(tmp_path / "alone")
    assert contents(tmp_path / "resident") == contents(tmp_path / "alone")
    assert [sidecar_of(str(tmp_path / "resident" / f"generated_00{i}.wav"))["seed"] for i in range(5)] == [*range(5)]


def test_an_adapter_that_does_not_fit_leaves_the_model_usable(
    request_for: Any, adapter: Path, strong_adapter: Adapter, tmp_path: Path
) -> None:
    lora = {name: tensor[:, :1] if "lora_A" in name else tensor for name, tensor in strong_adapter.lora.items()}
    wrong = Adapter(lora, strong_adapter.config, 1, 1, 6.5, strong_adapter.base_model)
    save_adapter(wrong, storage.as_path(tmp_path / "wrong_lora.pt"))
    asked = {"adapter": str(adapter), "prompts": PROMPTS[:1], "save_codes": True}
    resident = load_model(request_for(**asked), keep_base=True)
    render_with(resident, request_for("before", **asked))
    with pytest.raises(AdapterError, match="doesn't fit the model"):
        render_with(resident, request_for("failing", **{**asked, "adapter": str(tmp_path / "wrong_lora.pt")}))
    render_with(resident, request_for("after", **asked))
    assert contents(tmp_path / "before") == contents(tmp_path / "after")


def test_a_cancelled_request_leaves_the_model_usable(request_for: Any, tmp_path: Path) -> None:
    resident = load_model(request_for())
    with pytest.raises(Cancelled):
        render_with(resident, request_for("cancelled"), cancelled=lambda: True)
    with pytest.raises(ConfigError, match="there are no prompts"):
        render_with(resident, request_for("none", prompts=()))
    assert len(render_with(resident, request_for())) == 2


def test_the_engine_is_kept_until_a_strength_changes(debug_model: BaseModel, request_for: Any, adapter: Path) -> None:
    request = request_for(adapter=f"{adapter}:0.5")
    resident = ResidentModel(debug_model, torch.device("cpu"))
    resident.add_adapters(request.adapters)
    first = resident.engine(request.adapters)
    assert resident.engine(request.adapters) is first
    assert resident.engine(()) is not first


def test_frames_of_the_first_sample_of_each_batch_are_heard_as_they_are_made(request_for: Any) -> None:
    prompts = [Prompt(prompt="slow", duration=0.5), Prompt(prompt="fast", duration=0.7), Prompt(prompt="loud")]
    heard: dict[int, list[Tensor]] = {}
    request = request_for(prompts=prompts, save_codes=True, batch_size=2)
    pieces = render_with(
        load_model(request), request, on_frames=lambda piece, codes: heard.setdefault(piece.number, []).append(codes)
    )
    assert len(pieces) == 3 and len(heard) == 2
    for number, parts in heard.items():
        assert np.array_equal(torch.cat(parts, dim=1).numpy(), codes_of(pieces[number].wav))

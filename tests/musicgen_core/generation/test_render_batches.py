"""Many samples in batches: each as if it were rendered alone, in as many as fit the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musicgen_core.errors import DeviceError
from musicgen_core.generation import render as rendering
from musicgen_core.generation.plan import SHARE_FOR_CACHES, cache_bytes
from musicgen_core.generation.prompts import Prompt
from musicgen_core.generation.render import render
from musicgen_core.model.weights import BaseModel, load_lm
from tests.musicgen_core.generation.rendered_files import PROMPTS, codes_of, sidecar_of


def test_each_prompt_may_have_its_own_duration_and_seed(request_for: Any) -> None:
    prompts = [Prompt(prompt=PROMPTS[0], duration=0.4, seed=5), Prompt(prompt=PROMPTS[0]), Prompt(prompt=PROMPTS[0])]
    pieces = render(request_for(prompts=prompts))
    sidecars = [sidecar_of(piece.wav) for piece in pieces]
    assert [(one["duration"], one["seed"]) for one in sidecars] == [(0.4, 5), (0.6, 0), (0.6, 0)]
    assert [one["sampling"]["duration"] for one in sidecars] == [0.4, 0.6, 0.6]
    assert len({one["stream"] for one in sidecars}) == 3
    alone = render(request_for("alone", prompts=PROMPTS[:1], duration=0.4, settings={"seed": 5}))
    assert Path(alone[0].wav).read_bytes() == Path(pieces[0].wav).read_bytes()


def test_variations_differ_and_the_first_is_the_default_sample(request_for: Any) -> None:
    pieces = render(request_for(variations=3))
    assert [(piece.prompt, sidecar_of(piece.wav)["variation"]) for piece in pieces] == [
        (prompt, variation) for prompt in PROMPTS for variation in range(3)
    ]
    assert len({Path(piece.wav).read_bytes() for piece in pieces}) == 6
    usual = render(request_for("usual"))
    assert [Path(piece.wav).read_bytes() for piece in usual] == [Path(pieces[i].wav).read_bytes() for i in (0, 3)]


def test_a_padded_batch_gives_the_same_codes(request_for: Any) -> None:
    alone = render(request_for("alone", save_codes=True))
    batched = render(request_for("batched", save_codes=True, batch_size=4))
    for one, other in zip(alone, batched, strict=True):
        assert np.array_equal(codes_of(one.wav), codes_of(other.wav))
    assert [sidecar_of(piece.wav)["engine_batch_size"] for piece in batched] == [4, 4]


def test_the_batch_size_depends_on_gpu_memory(
    request_for: Any, monkeypatch: pytest.MonkeyPatch, debug_model: BaseModel
) -> None:
    """The arithmetic for a GPU, though the steps run here."""
    config = load_lm(debug_model).config
    sizes: list[int] = []
    own, own_size = rendering.Engine.generate, rendering._Rendering._size_for

    def generate(self: Any, prompts: Any, *given: Any, **named: Any) -> Any:
        sizes.append(len(prompts))
        return own(self, prompts, *given, **named)

    def size_on_gpu(self: Any, *given: Any) -> int:
        here, self._device = self._device, torch.device("cuda")
        try:
            return own_size(self, *given)
        finally:
            self._device = here

    nine_pieces = int(9.5 * cache_bytes(config, 5) / SHARE_FOR_CACHES)
    monkeypatch.setattr(rendering.Engine, "generate", generate)
    monkeypatch.setattr(rendering._Rendering, "_size_for", size_on_gpu)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (nine_pieces - 1000, nine_pieces))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2000)
    pieces = render(request_for(variations=6, duration=0.1))
    assert sizes == [8, 8] and len(pieces) == 12


def test_out_of_memory_all_samples_are_rendered_in_smaller_batches(
    request_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"number {number}" for number in range(10)]
    one_by_one = render(request_for("one by one", prompts=prompts, save_codes=True))
    own, most = rendering.Engine.generate, 8

    def generate(engine: Any, prompts: Any, **others: Any) -> Any:
        if len(prompts) > most:
            raise torch.OutOfMemoryError("as a GPU would")
        return own(engine, prompts, **others)

    monkeypatch.setattr(rendering.Engine, "generate", generate)
    made = render(request_for(prompts=prompts, save_codes=True, batch_size=32))
    assert [piece.prompt for piece in made] == prompts
    assert {sidecar_of(piece.wav)["engine_batch_size"] for piece in made} == {8}
    for piece, alone in zip(made, one_by_one, strict=True):
        assert np.array_equal(codes_of(piece.wav), codes_of(alone.wav))
    most = 0
    with pytest.raises(DeviceError, match="not even one sample at a time fits"):
        render(request_for(batch_size=8))


def test_the_same_prompt_twice_can_be_made_again_from_its_sidecar(request_for: Any) -> None:
    pieces = render(request_for(prompts=[PROMPTS[0], PROMPTS[1], PROMPTS[0]]))
    last = sidecar_of(pieces[2].wav)
    assert (last["prompt"], last["variation"]) == (PROMPTS[0], 1)
    again = render(request_for("again", prompts=PROMPTS[:1], variations=2))
    assert Path(again[1].wav).read_bytes() == Path(pieces[2].wav).read_bytes()

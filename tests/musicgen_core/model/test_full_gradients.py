"""The loss and the gradients of training all weights are those of stock audiocraft."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.audiocraft_compat import import_audiocraft
from musicgen_core.model.audiocraft_format import to_audiocraft
from musicgen_core.model.decoder import Condition
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.full_model import FullTrainingModel

FRAMES = 17
NO_SEEDS = torch.zeros(0)


def full(model: BaseModel, checkpointing: bool = False, dtype: torch.dtype = torch.float32) -> FullTrainingModel:
    return FullTrainingModel(load_lm(model, "cpu", dtype), Execution("fp32", False, checkpointing))


def gradients(model: FullTrainingModel) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.lm.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def batch(text_encoder: TextEncoder, prompts: list[str | None]) -> tuple[Tensor, Tensor, Condition]:
    codes = torch.randint(2048, (len(prompts), 4, FRAMES), generator=torch.Generator().manual_seed(1))
    return codes, torch.full((len(prompts),), FRAMES), text_encoder.encode(prompts)


@pytest.mark.parametrize("prompts", [["slow piano"], [None], ["slow piano", "slow piano"]], ids=["one", "null", "two"])
def test_loss_and_gradients_of_a_step_are_audiocrafts(
    debug_model: BaseModel, text_encoder: TextEncoder, audiocraft_lm: Any, prompts: list[str | None]
) -> None:
    solver = import_audiocraft("audiocraft.solvers.musicgen").MusicGenSolver
    conditioners = import_audiocraft("audiocraft.modules.conditioners")
    codes, frames, text = batch(text_encoder, prompts)
    given = [conditioners.ConditioningAttributes(text={"description": prompt}) for prompt in prompts]
    try:
        output = audiocraft_lm.compute_predictions(codes, given)
        loss, _ = solver._compute_cross_entropy(None, output.logits, codes, output.mask)
        loss.backward()
        expected = {name: one.grad for name, one in audiocraft_lm.named_parameters() if one.grad is not None}
    finally:
        audiocraft_lm.zero_grad()

    model = full(debug_model)
    losses = model.step(codes, frames, text, NO_SEEDS, 1 / len(codes))
    torch.testing.assert_close(losses.mean(), loss.detach(), atol=1e-5, rtol=0)
    found = to_audiocraft(gradients(model))
    assert found.keys() == expected.keys() == audiocraft_lm.state_dict().keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-3)


def test_activations_computed_again_give_the_same_gradients(debug_model: BaseModel, text_encoder: TextEncoder) -> None:
    kept, again = full(debug_model), full(debug_model, checkpointing=True)
    for model in (kept, again):
        model.step(*batch(text_encoder, ["bells", None]), NO_SEEDS, 1.0)
    found, expected = gradients(again), gradients(kept)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_micro_batches_add_up_and_padding_changes_nothing(debug_model: BaseModel, text_encoder: TextEncoder) -> None:
    codes, frames, text = batch(text_encoder, ["bells", None, "a long text about a fast breakbeat"])
    frames, text = torch.tensor([FRAMES, 9, 4]), Condition(text.states.double(), text.mask)
    whole, parts = full(debug_model, dtype=torch.float64), full(debug_model, dtype=torch.float64)
    losses = whole.step(codes, frames, text, NO_SEEDS, 1 / 3)
    for i, length in enumerate(frames):
        one = slice(i, i + 1)
        clip = Condition(text.states[one], text.mask[one])
        alone = parts.step(codes[one, :, :length], frames[one], clip, NO_SEEDS, 1 / 3)
        torch.testing.assert_close(alone, losses[one], rtol=1e-10, atol=0)
    found, expected = gradients(parts), gradients(whole)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-12)

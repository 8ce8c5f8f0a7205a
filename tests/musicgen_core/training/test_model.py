"""The training model computes the same as peft, and a clip's loss is independent of its batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from musicgen_core.codes import MONO
from musicgen_core.errors import ConfigError
from musicgen_core.model.adapters import AdapterConfig
from musicgen_core.model.decoder import Condition, MusicgenLM, teacher_forcing
from musicgen_core.model.lora import add_lora
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.compute.dropout import clip_seeds
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.losses import clip_losses
from musicgen_core.training.compute.model import TrainingModel

FRAMES = [24, 17, 5]
SOME = ("q_proj", "encoder_attn.v_proj", "encoder_attn.out_proj", "layers.0.fc1")
RANKS = [AdapterConfig(r, 32) for r in (1, 8, 24)]
RSLORA, DORA = AdapterConfig(8, 32, rslora=True), AdapterConfig(8, 32, dora=True)
BLOCKS = [
    AdapterConfig(8, 32, layers=(1,)),
    AdapterConfig(8, 32, layers=(0,)),
    AdapterConfig(8, 32, ranks={0: 2, 1: 5}),
]
PARTIAL, PARTIAL_DORA = AdapterConfig(8, 32, targets=SOME), AdapterConfig(8, 32, targets=SOME, rslora=True, dora=True)
KINDS = pytest.mark.parametrize(
    "lora", [RANKS[1], PARTIAL, DORA, PARTIAL_DORA, BLOCKS[0]], ids=["all", "some", "dora", "both", "one block"]
)


def adapted(model: BaseModel, lora: AdapterConfig, dtype: torch.dtype = torch.float64) -> Any:
    """The debug model with an adapter that changes it."""
    peft_model = add_lora(load_lm(model, "cpu", dtype), lora, 0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
        elif "magnitude" in name:
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.data *= 1 + 0.1 * noise.to(parameter.dtype)
    return peft_model.eval()


def training(peft_model: Any, checkpointing: bool = False, p: float = 0.1, precision: str = "fp32") -> TrainingModel:
    return TrainingModel(peft_model, p, Execution(precision, compile=False, checkpointing=checkpointing))


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Condition]:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(2048, (3, 4, max(FRAMES)), generator=generator)
    states = torch.randn(3, 6, 512, dtype=dtype, generator=generator)
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [0] * 6]).bool()
    return codes, torch.tensor(FRAMES), Condition(states, mask)


def seeds() -> Tensor:
    return clip_seeds(0, 1, [1, 2, 3])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [*RANKS, RSLORA, DORA, PARTIAL, PARTIAL_DORA, *BLOCKS], ids=str)
def test_losses_and_gradients_are_those_of_peft(
    debug_model: BaseModel, lora: AdapterConfig, checkpointing: bool
) -> None:
    codes, frames, text = batch()
    theirs = adapted(debug_model, lora)
    inputs, targets, valid = teacher_forcing(codes, frames, MONO)
    expected = clip_losses(theirs(inputs, text), targets, valid)
    (expected.mean(dim=1).sum() * 0.25).backward()

    own = adapted(debug_model, lora)
    model = training(own, checkpointing, p=0.0)
    model.zero_grad()
    losses = model.step(codes, frames, text, seeds(), 0.25)

    torch.testing.assert_close(losses, expected.detach(), rtol=1e-10, atol=0)
    for ours, others in zip(own.parameters(), theirs.parameters(), strict=True):
        assert (ours.grad is None) == (others.grad is None)
        if others.grad is not None:
            torch.testing.assert_close(ours.grad, others.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("lora", "checkpointing"),
    [(RANKS[1], False), (RANKS[1], True), (BLOCKS[0], False), (AdapterConfig(8, 32, dora=True), True)],
    ids=["all", "checkpointing", "one block", "dora"],
)
def test_losses_and_gradients_of_a_model_that_takes_a_melody_are_those_of_peft(
    debug_model: BaseModel, lora: AdapterConfig, checkpointing: bool
) -> None:
    def adapted() -> Any:
        torch.manual_seed(0)
        peft_model = add_lora(MusicgenLM(replace(debug_model.config.decoder, chroma_frames=16)).double(), lora, 0)
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.05)
        return peft_model.eval()

    codes, frames, condition = batch()
    condition.chroma = torch.randint(12, (3, 16), generator=torch.Generator().manual_seed(1))
    theirs = adapted()
    inputs, targets, valid = teacher_forcing(codes, frames, MONO)
    expected = clip_losses(theirs(inputs, condition), targets, valid)
    (expected.mean(dim=1).sum() * 0.25).backward()
    own = adapted()
    losses = training(own, checkpointing, p=0.0).step(codes, frames, condition, seeds(), 0.25)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-10, atol=0)
    for ours, others in zip(own.parameters(), theirs.parameters(), strict=True):
        if others.grad is not None:
            torch.testing.assert_close(ours.grad, others.grad, rtol=1e-8, atol=1e-12)
    alone = training(adapted(), p=0.0).losses(codes[1:2], frames[1:2], condition.rows(slice(1, 2)), None)
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-10, atol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_the_same_whichever_blocks_compute_it(
    debug_model: BaseModel, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = training(adapted(debug_model, RANKS[1]))
    monkeypatch.setattr("musicgen_core.training.compute.model.can_pack", lambda layers: False)
    general = training(adapted(debug_model, RANKS[1]), checkpointing)
    losses = [model.step(*batch(), seeds(), 0.25) for model in (packed, general)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-10, atol=0)
    for a, b in zip(general.parameters, packed.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("lora", [DORA, PARTIAL], ids=["dora", "some"])
def test_a_base_in_half_precision_learns_like_one_in_fp32(
    debug_model: BaseModel, lora: AdapterConfig, dropout: float
) -> None:
    half, exact = adapted(debug_model, lora, torch.bfloat16), adapted(debug_model, lora, torch.float32)
    models = [training(half, True, dropout, "bf16"), training(exact, True, dropout)]
    losses = [model.step(*batch(torch.float32), seeds(), 1.0) for model in models]
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=0)
    assert {parameter.dtype for parameter in models[0].parameters} == {torch.float32}
    gradients = [torch.cat([one.grad.flatten() for one in model.parameters]) for model in models]
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


@KINDS
def test_a_new_adapter_is_live_and_its_base_frozen(debug_model: BaseModel, lora: AdapterConfig) -> None:
    peft_model = add_lora(load_lm(debug_model), lora)
    training(peft_model).step(*batch(torch.float32), seeds(), 1.0)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name or "magnitude" in name:
            assert parameter.grad.count_nonzero() > 0, name
        else:
            assert "lora_A" in name or parameter.grad is None, name


@pytest.mark.parametrize("lora", [DORA, PARTIAL], ids=["dora", "some"])
def test_fp8_is_refused_where_the_general_blocks_compute(debug_model: BaseModel, lora: AdapterConfig) -> None:
    with pytest.raises(ConfigError, match="fp8 can't be combined") as refused:
        training(adapted(debug_model, lora, torch.bfloat16), precision="fp8")
    assert "--base-precision bf16" in refused.value.next_step


@KINDS
def test_gradients_of_micro_batches_add_up_to_those_of_the_batch(debug_model: BaseModel, lora: AdapterConfig) -> None:
    codes, frames, text = batch()
    whole, parts = training(adapted(debug_model, lora)), training(adapted(debug_model, lora))
    whole.step(codes, frames, text, seeds(), 1 / 3)
    for i in range(3):
        one = slice(i, i + 1)
        clip = Condition(text.states[one], text.mask[one])
        parts.step(codes[one], frames[one], clip, seeds()[one], 1 / 3)
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-12)


@KINDS
def test_neither_batch_mates_nor_filling_change_a_clips_loss(debug_model: BaseModel, lora: AdapterConfig) -> None:
    codes, frames, text = batch()
    model = training(adapted(debug_model, lora))
    together = model.losses(codes, frames, text, seeds())
    for i, length in enumerate(FRAMES):
        clip = Condition(text.states[i : i + 1], text.mask[i : i + 1])
        alone = model.losses(codes[i : i + 1, :, :length], frames[i : i + 1], clip, seeds()[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=0)


@KINDS
def test_activations_computed_again_are_dropped_out_alike(debug_model: BaseModel, lora: AdapterConfig) -> None:
    kept, again = training(adapted(debug_model, lora)), training(adapted(debug_model, lora), checkpointing=True)
    for model in (kept, again):
        model.step(*batch(), seeds(), 1.0)
    for a, b in zip(kept.parameters, again.parameters, strict=True):
        assert torch.equal(a.grad, b.grad)


@KINDS
def test_dropout_applies_only_in_training_and_differs_by_epoch(debug_model: BaseModel, lora: AdapterConfig) -> None:
    model = training(adapted(debug_model, lora))
    without, first = model.losses(*batch(), None), model.losses(*batch(), seeds())
    second = model.losses(*batch(), clip_seeds(0, 2, [1, 2, 3]))
    assert not torch.equal(first, without)
    assert not torch.equal(first, second)
    torch.manual_seed(5)  # whatever else draws random numbers
    assert torch.equal(first, model.losses(*batch(), seeds()))


@KINDS
def test_a_new_adapter_changes_nothing(debug_model: BaseModel, lora: AdapterConfig) -> None:
    codes, frames, text = batch(torch.float32)
    lm = load_lm(debug_model, "cpu", torch.float32)
    inputs, targets, valid = teacher_forcing(codes, frames, MONO)
    expected = clip_losses(lm(inputs, text), targets, valid)
    losses = training(add_lora(lm, lora)).losses(codes, frames, text, seeds())
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)

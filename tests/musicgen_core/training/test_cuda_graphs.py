"""A step replayed as a CUDA graph gives the bits of the eager step."""

from __future__ import annotations

import pytest
import torch

from musicgen_core.model.adapters import AdapterConfig
from musicgen_core.model.decoder import Condition
from musicgen_core.model.lora import add_lora
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.compute.dropout import clip_seeds
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.model import TrainingModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(("checkpointing", "deterministic"), [(False, False), (True, False), (False, True)])
def test_replays_give_the_bits_of_the_first_call(
    debug_model: BaseModel, checkpointing: bool, deterministic: bool
) -> None:
    peft_model = add_lora(load_lm(debug_model, "cuda", torch.bfloat16), AdapterConfig(8, 32, 0.1))
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05)
    model = TrainingModel(peft_model, 0.1, Execution("bf16", True, checkpointing, deterministic))
    seen = []
    for clips in ([1, 2], [3, 4], [1, 2], [3, 4], [1, 2]):  # two batches of one shape, eagerly first
        generator = torch.Generator().manual_seed(clips[0])
        codes = torch.randint(2048, (2, 4, 40), generator=generator).cuda()
        text = Condition(torch.randn(2, 5, 512, generator=generator).cuda(), torch.ones(2, 5).bool().cuda())
        model.zero_grad()
        losses = model.step(codes, torch.tensor([40, 23]).cuda(), text, clip_seeds(0, 1, clips).cuda(), 0.5)
        seen.append((losses, torch.cat([one.grad.flatten() for one in model.parameters])))
    for one, other in ((0, 2), (0, 4), (1, 3)):
        assert torch.equal(seen[one][0], seen[other][0])
        assert torch.equal(seen[one][1], seen[other][1])
    assert not torch.equal(seen[0][1], seen[1][1])
    assert model.release(), "no graph was captured"

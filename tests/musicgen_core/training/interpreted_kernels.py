"""Compare the fused blocks with the plain ones on a CPU, where Triton interprets its kernels; run by test_kernels.

TRITON_INTERPRET=1 python interpreted.py interpreted_kernels.py RANKS CHECKPOINTING PRECISION CHROMA_FRAMES → the
relative errors of a step's losses and gradients, the losses after an update, and losses without dropout
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch

from musicgen_core.layer_ranges import parse_ranks
from musicgen_core.model.adapters import AdapterConfig
from musicgen_core.model.decoder import Condition, MusicgenLM
from musicgen_core.model.lora import add_lora
from musicgen_core.model.weights import find_model, load_lm
from musicgen_core.training.compute.dropout import clip_seeds
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.model import TrainingModel


def random_model(chroma_frames: int) -> MusicgenLM:
    """Return the debug model, or one of its shape that takes a melody."""
    if not chroma_frames:
        return load_lm(find_model("debug"), "cpu", torch.float32)
    torch.manual_seed(0)
    return MusicgenLM(dataclasses.replace(find_model("debug").config.decoder, chroma_frames=chroma_frames))


def adapted(ranks: str, chroma_frames: int) -> Any:
    """Return a model with an adapter: of one rank, or of the ranks given by block, such as 0=8."""
    settings = AdapterConfig(8 if "=" in ranks else int(ranks), 32, 0.1)
    if "=" in ranks:
        by_block = parse_ranks(ranks)
        settings = dataclasses.replace(settings, layers=tuple(by_block), ranks=by_block)
    peft_model = add_lora(random_model(chroma_frames), settings, 0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=generator)
    return peft_model


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


def main(ranks: str, checkpointing: str, precision: str, frames_of_chroma: str) -> None:
    chroma_frames, recompute = int(frames_of_chroma), checkpointing == "True"
    plain = TrainingModel(adapted(ranks, chroma_frames), 0.1, Execution("fp32", False, recompute))
    fused = TrainingModel(adapted(ranks, chroma_frames), 0.1, Execution(precision, False, recompute), fused=True)
    generator = torch.Generator().manual_seed(0)
    codes, frames = torch.randint(2048, (2, 4, 20), generator=generator), torch.tensor([20, 13])
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2]).bool()
    states = torch.randn(2, 5, 512, generator=generator)
    chroma = torch.randint(12, (2, chroma_frames), generator=generator) if chroma_frames else None
    batch = codes, frames, Condition(states, mask, chroma)
    losses = [model.step(*batch, clip_seeds(0, 1, [1, 2]), 0.5) for model in (fused, plain)]
    gradients = [torch.cat([one.grad.flatten() for one in model.parameters]) for model in (fused, plain)]
    for model in (fused, plain):
        torch.optim.AdamW([model.trained.whole], lr=1e-3, fused=True).step()
        model.zero_grad()
    after = [model.step(*batch, clip_seeds(0, 2, [1, 2]), 0.5) for model in (fused, plain)]
    with torch.no_grad():
        without_dropout = [model.losses(*batch, None) for model in (fused, plain)]
    print(relative(*losses), relative(*gradients), relative(*after), relative(*without_dropout))


if __name__ == "__main__":
    main(*sys.argv[1:])

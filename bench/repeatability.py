"""Whether equal training steps on one GPU have equal losses and gradients, on weights of musicgen-large's shape.

    python -m bench.repeatability [--layers 12]

Two trainers with the same weights take the same batch four times each, with the fastest kernels of attention and with
deterministic ones. Printed per length and number of clips: whether all losses and all gradients have the same bits, and
the largest difference beside the largest gradient.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from bench.train import clips, large, random_lm
from musicgen_core.model.adapters import AdapterConfig
from musicgen_core.model.lora import add_lora
from musicgen_core.training.compute.dropout import clip_seeds
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.compute.model import TrainingModel

REPEATS = 4


def model_of(layers: int, device: torch.device, deterministic: bool) -> TrainingModel:
    model = TrainingModel(
        add_lora(random_lm(large(layers), device), AdapterConfig(8, 32, 0.0)),
        0.0,
        Execution("bf16", True, checkpointing=False, deterministic=deterministic),
    )
    generator = torch.Generator(device=device).manual_seed(3)
    noise = torch.randn(model.trained.whole.shape, generator=generator, device=device)
    model.trained.whole.data.copy_(0.02 * noise)
    return model


def steps(model: TrainingModel, batch: int, frames: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Return losses and gradients of equal steps; from the third on they are replayed as a CUDA graph."""
    codes, text = clips(batch, device, model.lm.config)
    lengths = torch.full((batch,), frames, device=device)
    found = []
    for _ in range(REPEATS):
        model.zero_grad()
        seeds = clip_seeds(0, 1, range(batch)).to(device)
        losses = model.step(codes[:, :, :frames].contiguous(), lengths, text, seeds, 1 / batch)
        found.append((losses.clone(), model.trained.gradient.clone()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    given = parser.parse_args()
    device = torch.device("cuda")
    for deterministic in (False, True):
        models = [model_of(given.layers, device, deterministic) for _ in range(2)]
        for frames in (500, 1500):
            for batch in (1, 4):
                found = [step for model in models for step in steps(model, batch, frames, device)]
                losses, gradients = zip(*found, strict=True)
                same = [all(torch.equal(values[0], each) for each in values) for values in (losses, gradients)]
                furthest = max((gradients[0] - each).abs().max().item() for each in gradients)
                print(
                    f"{'deterministic, ' * deterministic}{batch} x {frames} frames: losses equal {same[0]}, "
                    f"gradients equal {same[1]}, "
                    f"differing by up to {furthest:.1e} of {gradients[0].abs().max().item():.1e}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

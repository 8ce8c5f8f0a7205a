"""The validation of a run: its loss over the held-out clips, shared among the ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from musicgen_core.data.crops import prefetched
from musicgen_core.errors import Cancelled
from musicgen_core.stages import advance
from musicgen_core.training.batches import Batches
from musicgen_core.training.compute.gradients import StepGradients, perplexity
from musicgen_core.training.processes.distributed import World

VALIDATING = "validating"


def validate(
    batches: Batches,
    gradients: StepGradients,
    world: World,
    micro: int,
    cancelled: Callable[[], bool],
    after_step: int,
) -> dict[str, float]:
    """Return loss (nats) and perplexity over the validation clips, as metrics; empty without validation clips.

    Args:
        micro: clips in a micro-batch.
        after_step: the last step, which an error names.

    Raises:
        Cancelled: `cancelled` returned true.
    """
    everything = [int(index) for index in batches.validation_clips]
    if not everything:
        return {}
    total = torch.zeros(batches.clips.codebooks, dtype=torch.float64, device=world.device)  # [K]
    size = world.size
    own = everything[world.rank :: size]
    # The same number on all ranks, because each round has a collective operation.
    rounds = -(-len(everything) // (micro * size))
    parts = [own[number * micro : (number + 1) * micro] for number in range(rounds)]
    making = (partial(batches.of_validation, part) for part in parts if part)
    with prefetched(making, device=world.device) as prepared:
        for number, part in enumerate(parts):
            advance(VALIDATING, number, rounds)
            if world.any(cancelled()):
                raise Cancelled(f"the training was cancelled while it validated after step {after_step}")
            if part:
                total += gradients.validation_losses(next(prepared)).sum(dim=0)
            else:
                gradients.accompany_validation()
    by_codebook = (world.sum(total) / len(everything)).tolist()
    loss = sum(by_codebook) / len(by_codebook)
    metrics = {"val/loss": loss, "val/perplexity": perplexity(loss)}
    for k, value in enumerate(by_codebook):
        metrics[f"val/loss_codebook_{k}"] = value
        metrics[f"val/perplexity_codebook_{k}"] = perplexity(value)
    return metrics

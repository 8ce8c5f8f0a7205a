"""Sample the next codes from logits: guidance, temperature, top-k and top-p."""

from __future__ import annotations

import torch
from torch import Tensor

from musicgen_core.config import SamplingSettings


def guide(conditional: Tensor, unconditional: Tensor, coefficient: float) -> Tensor:
    """Return logits after classifier-free guidance, of any shape.

    Source: Ho & Salimans 2022; audiocraft `_sample_next_token`.
    """
    return unconditional + (conditional - unconditional) * coefficient


def sample(logits: Tensor, settings: SamplingSettings, noise: Tensor) -> Tensor:
    """Sample codes.

    Args:
        logits: [..., cardinality].
        settings: sampling settings.
        noise: [...], uniform on [0, 1), one draw per code, the only source of randomness: a prompt's codes don't depend
            on the rest of the batch.

    Returns:
        [...], int64.
    """
    if settings.greedy:
        return logits.argmax(dim=-1)
    probabilities = torch.softmax(logits.float() / settings.temperature, dim=-1)
    keep = min(settings.top_k, logits.shape[-1])
    if settings.top_p == 0 and keep > 0:
        ordered, codes = probabilities.topk(keep, dim=-1)
    else:
        ordered, codes = probabilities.sort(dim=-1, descending=True, stable=True)
    if settings.top_p > 0:
        # Keep codes until the probability before them reaches top_p, like audiocraft's sample_top_p.
        ordered = ordered.masked_fill(ordered.cumsum(dim=-1) - ordered > settings.top_p, 0)
    cumulative = ordered.cumsum(dim=-1)
    threshold = noise[..., None] * cumulative[..., -1:]
    # The first code whose cumulative probability exceeds the threshold: its own probability is above 0.
    chosen = (cumulative <= threshold).sum(dim=-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
    return codes.gather(-1, chosen)[..., 0]

"""The training loss: cross-entropy over the delay pattern, averaged so that it is independent of batching."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_losses(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cross-entropy of each clip and codebook over its valid positions, in nats.

    Args:
        logits: [B, K, S, cardinality].
        targets: [B, K, S], next codes; ignored where not valid.
        valid: [B, K, S], True where a prediction counts.

    Returns:
        [B, K], fp32 (fp64 from fp64). The loss of a clip is its mean over codebooks; that of a batch, over its clips.
    """
    safe = targets.masked_fill(~valid, 0)
    losses = F.cross_entropy(
        logits.flatten(0, 2).to(_at_least_fp32(logits.dtype)), safe.flatten(), reduction="none"
    ).view_as(safe)
    return (losses * valid).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)


def perplexity(loss: float) -> float:
    """Return exp(loss) of a loss in nats, which is clamped to 700, as a diverged run's would overflow."""
    return math.exp(min(loss, 700.0))


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32

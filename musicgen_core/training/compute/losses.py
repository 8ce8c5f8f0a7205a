"""The loss of clips from the blocks' output."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def head_losses(x: Tensor, norm: tuple[Tensor, Tensor], heads: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the loss of each clip and codebook, computed without storing the logits in fp32.

    Args:
        x: [B, S, D], the last block's output.
        norm: weight and bias [D] of the final layer norm.
        heads: [K · cardinality, D], the output layers of all codebooks.
        targets: [B, K, S], next codes.
        valid: [B, K, S], True where a prediction counts.

    Returns:
        [B, K], nats; see `clip_losses`.
    """
    codebooks = targets.shape[1]
    logits = F.linear(F.layer_norm(x, x.shape[-1:], *norm), heads)
    by_codebook = logits.unflatten(-1, (codebooks, -1)).transpose(1, 2)  # [B, K, S, cardinality]
    return clip_losses(by_codebook, targets, valid)


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
    exact = logits.flatten(0, 2).to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(exact, safe.flatten(), reduction="none").view_as(safe)
    return (losses * valid).sum(dim=-1) / valid.sum(dim=-1).clamp(min=1)

"""The delay pattern: codebook k is shifted k steps right, so that one step predicts one code of each codebook.

Source: Copet et al. 2023, "Simple and Controllable Music Generation", section 2.2; audiocraft's
`DelayedPatternProvider`. Step 0 of a sequence holds the special token alone.

    frames       0  1  2  3            steps        0  1  2  3  4  5
    codebook 0   a0 a1 a2 a3     →     codebook 0   ·  a0 a1 a2 a3 ·
    codebook 1   b0 b1 b2 b3           codebook 1   ·  ·  b0 b1 b2 b3
"""

from __future__ import annotations

import torch
from torch import Tensor


def delay(codes: Tensor, special: int, steps: int | None = None) -> Tensor:
    """Return the delayed sequence [B, K, steps] of codes [B, K, T], padded with `special`; by default T + K steps."""
    batch, codebooks, frames = codes.shape
    steps = frames + codebooks if steps is None else steps
    sequence = codes.new_full((batch, codebooks, steps), special)
    for k in range(codebooks):
        sequence[:, k, k + 1 : k + 1 + frames] = codes[:, k, : max(0, steps - k - 1)]
    return sequence


def undelay(sequence: Tensor, frames: int) -> Tensor:
    """Return the codes [B, K, frames] of a delayed sequence [B, K, ≥ frames + K]."""
    return torch.stack([sequence[:, k, k + 1 : k + 1 + frames] for k in range(sequence.shape[1])], dim=1)


def teacher_forcing(codes: Tensor, frames: Tensor, special: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, targets and validity of next-step prediction over the pattern.

    Args:
        codes: [B, K, T], clips padded at the end with anything in range.
        frames: [B], the true length of each clip.
        special: the id of the special token.

    Returns:
        inputs [B, K, T], targets [B, K, T] and valid [B, K, T]. A position is valid where both its code exists and
        every codebook before it does: the pattern's corners and the padding are left out, as in audiocraft's
        `compute_predictions` with `keep_only_valid_steps=True`.
    """
    length = codes.shape[-1]
    sequence = delay(codes, special, steps=length + 1)
    step = torch.arange(length, device=codes.device)
    codebook = torch.arange(codes.shape[1], device=codes.device)
    valid = (step >= codebook[:, None])[None] & (step < frames[:, None])[:, None]  # [B, K, T]
    return sequence[..., :-1], sequence[..., 1:], valid

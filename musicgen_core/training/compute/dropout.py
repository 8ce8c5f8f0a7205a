"""LoRA's dropout as a pure function of seed, clip and position: a counter-based random number generator.

An element of an activation [rows, width] is kept if a hash of (row seed, column) is at or above a threshold. The row
seed is itself a hash, of the run's seed, the epoch, the clip, the position in the clip and the layer. Each kernel
computes the mask that it needs in registers, 1 multiplication and 1 comparison per element, in the forward and again in
the backward pass; no mask is stored or read. It is the same on every device, in every micro-batch, on any number of
GPUs and however often activations are recomputed, and there is no random state to save in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musicgen_core.seeds import stream_of

_GOLDEN = -1640531527  # 2³² / golden ratio, odd: multiples of it spread over all 32 bits
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - (1 << 32))


def clip_seeds(seed: int, epoch: int, hashes: Sequence[int]) -> Tensor:
    """Return a seed for each clip of an epoch, [B], int32, from the clips' hashes."""
    return torch.tensor([stream_of(seed, epoch, int(clip)) & 0x7FFFFFFF for clip in hashes], dtype=torch.int32)


def mix(x: Tensor) -> Tensor:
    """Return a hash of each int32, in which every bit of the result depends on every bit of x.

    Source: Chris Wellons' `lowbias32` (hash-prospector, 2018), with logical shifts written for signed integers.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _MULTIPLIERS[0]
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _MULTIPLIERS[1]
    return x ^ ((x >> 16) & 0xFFFF)


def row_seeds(seeds: Tensor, rows: int, streams: int) -> Tensor:
    """Return a seed for each row of activations in each of several independent streams.

    Args:
        seeds: [B], int32, of the clips.
        rows: positions of a clip.
        streams: how many inputs of the model's linear layers dropout applies to.

    Returns:
        [streams, B · rows], int32.
    """
    row = torch.arange(rows, dtype=torch.int32, device=seeds.device)
    stream = torch.arange(streams, dtype=torch.int32, device=seeds.device)
    rows_of_clips = mix(mix(seeds)[:, None] + row * _GOLDEN).flatten()
    return mix(rows_of_clips + mix(stream + 1)[:, None])


def threshold(p: float) -> int:
    """Return the int32 below which a hash means that its element is dropped: a share p of all hashes."""
    return round(p * (1 << 32)) - (1 << 31)


def keep(seeds: Tensor, width: int, p: float) -> Tensor:
    """Return which of [rows, width] activations are kept, each with probability 1 − p; seeds [rows].

    Seeds and columns are mixed, so one multiplication is enough for each element: it spreads over the upper bits what
    differs in any bit. With one factor for all rows some rows' masks would be alike.
    """
    column = mix(torch.arange(width, dtype=torch.int32, device=seeds.device))
    return (seeds[:, None] ^ column) * (mix(seeds) | 1)[:, None] >= threshold(p)


def drop(x: Tensor, seeds: Tensor, p: float) -> Tensor:
    """Return dropout of x [rows, width], with kept values scaled by 1 / (1 − p); seeds [rows]."""
    return x if p == 0 else torch.where(keep(seeds, x.shape[-1], p), x * (1 / (1 - p)), 0)

"""LoRA's dropout as a pure function of seed, clip and position.

A mask is computed where it is used, forwards and backwards, and never stored. It is the same on every device, whatever
a clip is batched with, however many GPUs share a step and however often activations are computed again; and there is
no random state to save.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from musicgen_core.seeds import stream_of

_GOLDEN = -1640531527  # 2³² / golden ratio, odd: multiples of it spread over all 32 bits
_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - (1 << 32))


def clip_seeds(seed: int, epoch: int, hashes: Sequence[int]) -> Tensor:
    """A seed for each clip of an epoch: [B], int32."""
    return torch.tensor([stream_of(seed, epoch, int(clip)) & 0x7FFFFFFF for clip in hashes], dtype=torch.int32)


def mix(x: Tensor) -> Tensor:
    """int32 → int32, each bit of the result depending on each bit given.

    Source: Chris Wellons' `lowbias32` (hash-prospector, 2018), with logical shifts written for signed integers.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _MULTIPLIERS[0]
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _MULTIPLIERS[1]
    return x ^ ((x >> 16) & 0xFFFF)


def row_keys(seeds: Tensor, rows: int, streams: int) -> Tensor:
    """A key for each row of activations in each of several independent streams.

    Args:
        seeds: [B], int32.
        rows: positions of a clip.
        streams: how many places of the model drop out.

    Returns:
        [streams, B · rows], int32.
    """
    row = torch.arange(rows, dtype=torch.int32, device=seeds.device)
    stream = torch.arange(streams, dtype=torch.int32, device=seeds.device)
    keys = mix(mix(seeds)[:, None] + row * _GOLDEN).flatten()
    return mix(keys + mix(stream + 1)[:, None])


def threshold(p: float) -> int:
    """Values of int32 below it are dropped: a share p of all."""
    return round(p * (1 << 32)) - (1 << 31)


def keep(keys: Tensor, width: int, p: float) -> Tensor:
    """Which of [rows, width] activations stay, each with probability 1 − p; keys [rows].

    Keys and columns are mixed, so one multiplication is enough for each element: it spreads over the upper bits what
    differs in any bit. With one factor for all rows some rows' masks would be alike.
    """
    column = mix(torch.arange(width, dtype=torch.int32, device=keys.device))
    return (keys[:, None] ^ column) * (mix(keys) | 1)[:, None] >= threshold(p)


def drop(x: Tensor, keys: Tensor, p: float) -> Tensor:
    """Dropout of x [rows, width]: kept values are scaled by 1 / (1 − p)."""
    return x if p == 0 else torch.where(keep(keys, x.shape[-1], p), x * (1 / (1 - p)), 0)

"""The kernels of self-attention in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.deterministic
from torch.nn.attention import SDPBackend, sdpa_kernel

_FASTEST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""The fastest on an H200 first."""
_DETERMINISTIC = _FASTEST[1:]
"""Those with a backward pass that adds up in a fixed order if asked to."""


@contextmanager
def attention_kernels(deterministic: bool) -> Iterator[None]:
    """Choose the kernels of self-attention in the forward and backward passes of the block.

    Args:
        deterministic: whether equal inputs must give equal bits, also in the backward pass.
    """
    if not deterministic:
        with sdpa_kernel(_FASTEST, set_priority=True):
            yield
        return
    switches: Any = torch.utils.deterministic
    mode, fills = torch.get_deterministic_debug_mode(), switches.fill_uninitialized_memory
    switches.fill_uninitialized_memory = False  # it takes a kernel for each new tensor
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with sdpa_kernel(_DETERMINISTIC, set_priority=True):
            yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        switches.fill_uninitialized_memory = fills

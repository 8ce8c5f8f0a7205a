"""The kernels of self-attention in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
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
_DETERMINISTIC = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""Those with a backward pass that can add up in a fixed order: cuDNN's can't."""


def attention_kernels(deterministic: bool) -> AbstractContextManager[None]:
    """Choose the kernels of self-attention.

    Args:
        deterministic: whether their backward pass, within `deterministic_backward`, must give the same bits each time.
    """
    kernels: AbstractContextManager[None] = sdpa_kernel(_DETERMINISTIC if deterministic else _FASTEST, True)
    return kernels


@contextmanager
def deterministic_backward() -> Iterator[None]:
    """Let flash attention's backward pass add up in a fixed order.

    The switch is PyTorch's own, which other operations refuse: the block should hold the attention's backward alone.
    """
    switches: Any = torch.utils.deterministic
    mode, fills = torch.get_deterministic_debug_mode(), switches.fill_uninitialized_memory
    switches.fill_uninitialized_memory = False  # it takes a kernel for each new tensor
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        switches.fill_uninitialized_memory = fills

"""Find NaN and infinities in tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def names_of_non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the tensors that hold NaN or an infinity.

    Each tensor is read once, nothing of its size is allocated, and a GPU is synchronized once for all of them.
    """
    floats = {name: one for name, one in tensors.items() if one.is_floating_point() and one.numel()}
    if not floats:
        return []
    extremes = [torch.stack(one.detach().flatten().aminmax()).double() for one in floats.values()]  # propagate NaN
    finite = torch.stack(extremes).isfinite().all(dim=1).tolist()
    return [name for name, is_finite in zip(floats, finite, strict=True) if not is_finite]

"""An adapter's many small parameters as one flat tensor: an optimizer step is then a few kernels, not a thousand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class FlatParameters:
    """Parameters and their gradients as views of one tensor each.

    Args:
        parameters: in the order in which optimizer states are saved.
        order: the same parameters in their order in memory.

    Attributes:
        whole: [total], all parameters, which the optimizer updates.
        gradient: [total], their gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], order: Sequence[nn.Parameter]) -> None:
        self._order = order
        self._positions = {id(parameter): position for position, parameter in enumerate(order)}
        self._parameters = parameters
        self.whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in order]))
        self.gradient = torch.zeros_like(self.whole)
        self.whole.grad = self.gradient
        for parameter, data, gradient in zip(
            order, self._parts(self.whole.data), self._parts(self.gradient), strict=True
        ):
            parameter.data, parameter.grad = data, gradient

    def split_state(self, state: dict[int, Any]) -> dict[int, Any]:
        """Return the state of an optimizer of `whole` as that of an optimizer of the single parameters."""
        if not state:
            return {}
        parts = {
            name: self._parts(value) if value.shape == self.whole.shape else [value] * len(self._order)
            for name, value in state[0].items()
        }
        positions = [self._positions[id(parameter)] for parameter in self._parameters]
        return {i: {name: of_each[position] for name, of_each in parts.items()} for i, position in enumerate(positions)}

    def join_state(self, state: dict[int, Any]) -> dict[int, Any]:
        """Return the state of an optimizer of the single parameters as that of one of `whole`."""
        if not state:
            return {}
        in_order = sorted(state, key=lambda i: self._positions[id(self._parameters[i])])
        joined = {
            name: torch.cat([state[i][name].flatten() for i in in_order]) if value.dim() else value
            for name, value in state[0].items()
        }
        return {0: joined}

    def _parts(self, whole: Tensor) -> list[Tensor]:
        parts = whole.split([parameter.numel() for parameter in self._order])
        return [part.view_as(parameter) for part, parameter in zip(parts, self._order, strict=True)]

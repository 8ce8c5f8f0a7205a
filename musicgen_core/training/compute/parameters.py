"""The parameters that a run trains, as the optimizer and checkpoints take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from musicgen_core.training.compute.sharding import full_tensor, gathered, like_shard
from musicgen_core.training.processes.distributed import World


class TrainedParameters:
    """The parameters that a run trains, with their gradients.

    Attributes:
        tensors: the parameters that the optimizer updates.
        count: the number of single parameters, as checkpoints have them.
    """

    tensors: Sequence[nn.Parameter]
    count: int

    @property
    def numel(self) -> int:
        """Return the number of trained values, over all ranks."""
        return sum(tensor.numel() for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Return the bytes of the trained values, over all ranks."""
        return sum(tensor.numel() * tensor.itemsize for tensor in self.tensors)

    def zero_grad(self) -> None:
        raise NotImplementedError

    def sum_gradients(self, world: World) -> None:
        """Replace the gradients by their sums over all ranks, where a backward pass doesn't do that."""
        raise NotImplementedError

    def divide_gradients(self, factor: float) -> None:
        for tensor in self.tensors:
            if tensor.grad is not None:
                tensor.grad.div_(factor)

    def clip_gradients(self, most: float) -> Tensor:
        """Scale the gradients down to a norm of at most `most`, and return their norm before, []."""
        return full_tensor(torch.nn.utils.clip_grad_norm_(self.tensors, most))

    def saved(self, states: dict[int, Any], is_adamw: bool) -> dict[str, Any]:
        """Return the state of an optimizer of `tensors` for a checkpoint, by single parameter under `state`."""
        raise NotImplementedError

    def loaded(self, saved: Mapping[str, Any]) -> dict[int, Any]:
        """Return the states that `saved` was called on."""
        raise NotImplementedError


class FlatParameters(TrainedParameters):
    """An adapter's many small parameters and their gradients as views of one tensor each.

    An optimizer step is then a few kernels, not a thousand.

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
        self._parameters, self.count = parameters, len(parameters)
        self.whole = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in order]))
        self.gradient = torch.zeros_like(self.whole)
        self.whole.grad = self.gradient
        self.tensors = (self.whole,)
        for parameter, data, gradient in zip(
            order, self._parts(self.whole.data), self._parts(self.gradient), strict=True
        ):
            parameter.data, parameter.grad = data, gradient

    def zero_grad(self) -> None:
        self.gradient.zero_()

    def sum_gradients(self, world: World) -> None:
        world.all_reduce(self.gradient)

    def saved(self, states: dict[int, Any], is_adamw: bool) -> dict[str, Any]:
        """Return the state of an optimizer of `whole` for a checkpoint, as far as it has one by single parameter.

        The rest stands under `of_all`: numbers, and 8-bit moments in blocks that don't end where parameters do.
        """
        if is_adamw:
            return {"state": self.split_state(states)}
        values = states.get(0, {})
        of_each = {name: value for name, value in values.items() if self._is_of_each(value)}
        of_all = {name: value for name, value in values.items() if name not in of_each}
        return {"state": self.split_state({0: of_each} if of_each else {}), "of_all": of_all}

    def loaded(self, saved: Mapping[str, Any]) -> dict[int, Any]:
        state = self.join_state(saved["state"])
        if of_all := saved.get("of_all"):
            state = {0: {**state.get(0, {}), **of_all}}
        return state

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

    def _is_of_each(self, value: Any) -> bool:
        """Return whether a value of the state has a number for each element of the parameters."""
        return isinstance(value, Tensor) and value.shape == self.whole.shape and value.is_floating_point()

    def _parts(self, whole: Tensor) -> list[Tensor]:
        parts = whole.split([parameter.numel() for parameter in self._order])
        return [part.view_as(parameter) for part, parameter in zip(parts, self._order, strict=True)]


class SeparateParameters(TrainedParameters):
    """Parameters that the optimizer updates one by one, sharded over the ranks or not.

    A single tensor of all of them, as of an adapter's, would be too large for kernels that count in 32 bits.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.tensors, self.count = parameters, len(parameters)

    def zero_grad(self) -> None:
        for tensor in self.tensors:
            tensor.grad = None  # frees their memory until the next backward pass

    def sum_gradients(self, world: World) -> None:
        """Do nothing: where there are several ranks, the backward pass sums the gradients as it shards them."""

    def saved(self, states: dict[int, Any], is_adamw: bool) -> dict[str, Any]:
        """Gather the states from all ranks, which must call this together."""
        return {"state": {i: {name: gathered(one) for name, one in state.items()} for i, state in states.items()}}

    def loaded(self, saved: Mapping[str, Any]) -> dict[int, Any]:
        """Return copies of the states, or this rank's shards of them."""
        return {
            i: {name: like_shard(one, self.tensors[i]) for name, one in state.items()}
            for i, state in saved["state"].items()
        }

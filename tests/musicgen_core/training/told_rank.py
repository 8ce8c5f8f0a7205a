"""One rank, on the device of the command line: method names and arguments come in as pickles, results go out."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import torch
from torch import Tensor

from musicgen_core.training.distributed import World


def sum_gradients(world: World, gradients: list[Tensor | None], shapes: list[tuple[int, ...]]) -> list[Tensor | None]:
    parameters = [torch.nn.Parameter(torch.zeros(shape, device=world.device)) for shape in shapes]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.to(world.device)
    world.sum_gradients(iter(parameters))
    return [None if parameter.grad is None else parameter.grad.cpu() for parameter in parameters]


def sum_tensor(world: World, tensor: Tensor) -> Tensor:
    return world.sum(tensor.to(world.device)).cpu()


def main() -> None:
    with World.from_environment(torch.device(sys.argv[1])) as world:
        while True:
            method, *arguments = pickle.load(sys.stdin.buffer)
            result: Any
            if method == "leave":
                break
            if method == "describe":
                result = (world.rank, world.size, world.is_main, str(world.device))
            elif method == "sum_gradients":
                result = sum_gradients(world, *arguments)
            elif method == "sum":
                result = sum_tensor(world, *arguments)
            else:
                try:
                    result = getattr(world, method)(*arguments)
                except Exception as error:  # the tests look at it
                    result = error
            pickle.dump(result, sys.stdout.buffer)
            sys.stdout.buffer.flush()


main()

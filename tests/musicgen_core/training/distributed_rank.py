"""One rank, on the device of the command line: reads method names and arguments as pickles, and writes results."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import torch
from torch import Tensor

from musicgen_core.training.processes.distributed import World


def all_reduce(world: World, tensor: Tensor) -> Tensor:
    own = tensor.to(world.device)
    world.all_reduce(own)
    return own.cpu()


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
            elif method == "all_reduce":
                result = all_reduce(world, *arguments)
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

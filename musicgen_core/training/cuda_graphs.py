"""CUDA graphs: a micro-batch's thousands of kernels started at once, since starting them one by one takes longer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from musicgen_core.errors import raise_if_interrupted

logger = logging.getLogger(__name__)
Result = TypeVar("Result", Tensor, None)


class Graphs(Generic[Result]):
    """Runs a function of tensors, and from the third call with the same shapes on replays what it did.

    The function must do the same for the same shapes, without waiting for the GPU, and keep what it changes in place.

    Args:
        function: tensors on one GPU, or nothing → a tensor or nothing.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function: Callable[..., Result] = function
        self._seen: set[object] = set()
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, list[Tensor], Result]] = {}
        self._works = True

    def __call__(self, *inputs: Tensor) -> Result:
        key = tuple((one.shape, one.dtype) for one in inputs)
        if key not in self._graphs:
            if key not in self._seen or not self._works:  # the first call compiles, and chooses algorithms
                self._seen.add(key)
                return self._function(*inputs)
            try:
                self._graphs[key] = self._capture(*inputs)
            except torch.OutOfMemoryError:
                self.release()
                raise
            except RuntimeError as error:
                raise_if_interrupted(error)
                self._works = False
                self.release()
                logger.warning("no CUDA graph (%s): training goes on without, and slower", error)
                return self._function(*inputs)
        graph, places, output = self._graphs[key]
        if inputs:
            torch._foreach_copy_(places, list(inputs))
        graph.replay()
        return None if output is None else output.clone()

    def release(self) -> bool:
        """Give the graphs' memory back → whether there were any."""
        held = bool(self._graphs)
        self._graphs.clear()
        torch.cuda.empty_cache()
        return held

    def _capture(self, *inputs: Tensor) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Result]:
        places = [one.clone() for one in inputs]
        torch.cuda.empty_cache()  # graphs have their own memory: what the first call took would stand beside it
        graph = torch.cuda.CUDAGraph()
        first = next((graph for graph, *_ in self._graphs.values()), None)
        pool = None if first is None else first.pool()  # one for all: they never run at the same time
        # Other threads may save and load meanwhile, so it is this thread alone that must not wait for the GPU.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = self._function(*places)
        return graph, places, output

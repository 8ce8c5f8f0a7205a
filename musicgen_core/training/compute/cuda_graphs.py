"""CUDA graphs: the thousands of kernels of a micro-batch are launched as one, which spares most of the launch time.

A graph records the kernels of one call together with the addresses that they read and write. To replay it, new inputs
are copied into the tensors that were recorded (the static inputs); the result is copied out of the recorded output.
Memory of a graph comes from a pool of its own, which all graphs here share because they never run at the same time.
"""

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
    """Calls a function of tensors, and from its third call with the same shapes on replays a CUDA graph of it.

    The first call compiles and lets libraries choose algorithms, the second is captured. The function must launch the
    same kernels for the same shapes, must not synchronize with the GPU, and must update its state in place.

    Args:
        function: takes tensors on one GPU, or nothing; returns a tensor or None.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self._function: Callable[..., Result] = function
        self._seen: set[object] = set()
        self._graphs: dict[object, tuple[torch.cuda.CUDAGraph, list[Tensor], Result]] = {}
        self._works = True

    def __call__(self, *inputs: Tensor) -> Result:
        key = tuple((one.shape, one.dtype) for one in inputs)
        if key not in self._graphs:
            if key not in self._seen or not self._works:  # the first call compiles and chooses algorithms
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
                logger.warning("no CUDA graph (%s): training continues without, and slower", error)
                return self._function(*inputs)
        graph, static_inputs, output = self._graphs[key]
        if inputs:
            torch._foreach_copy_(static_inputs, list(inputs))
        graph.replay()
        return None if output is None else output.clone()

    def release(self) -> bool:
        """Free the graphs' memory, and return whether there were any."""
        held = bool(self._graphs)
        self._graphs.clear()
        torch.cuda.empty_cache()
        return held

    def _capture(self, *inputs: Tensor) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Result]:
        static_inputs = [one.clone() for one in inputs]
        torch.cuda.empty_cache()  # the graphs' pool can't use the blocks that earlier calls left in the cache
        graph = torch.cuda.CUDAGraph()
        first = next((graph for graph, *_ in self._graphs.values()), None)
        pool = None if first is None else first.pool()  # one for all: they never run at the same time
        # Other threads may save and load meanwhile: only this one must not synchronize with the GPU.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = self._function(*static_inputs)
        return graph, static_inputs, output

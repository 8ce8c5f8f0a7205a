"""The processes of a distributed training run, one per GPU, and their collective operations."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from musicgen_core.errors import DeviceError, TrainingError
from musicgen_core.language import message

PATIENCE = timedelta(hours=1)
"""Timeout of collective operations: longer than a compilation, a model's download, or a save that is retried while a
storage is down. Only a lost host or a rank that hangs is noticed this late; a process that ends closes its connections,
which is noticed at once."""

T = TypeVar("T")
_CPU = torch.device("cpu")


class LostRank(TrainingError):
    """The other processes can't be reached: mostly a consequence of an error that ended one of them."""


@dataclass(frozen=True)
class World:
    """The process group of a training run, seen from one rank. As a context manager it destroys the group at the end.

    All ranks must call the methods, except `alone` and `from_environment`, in the same order. With one process they do
    nothing. Everything but gradients is exchanged between CPUs (Gloo), so that calling `any` in each step never waits
    for a GPU, and a rank that ended is noticed at once.

    Attributes:
        rank: rank of this process, from 0, over all machines.
        device: the device that this process computes on; with CUDA a GPU of its own.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def alone(cls, device: torch.device = _CPU) -> World:
        return cls(0, 1, device)

    @classmethod
    def from_environment(cls, device: torch.device) -> World:
        """Join the process group that torchrun started; without torchrun, return a group of this process alone.

        Args:
            device: cuda or cpu; with cuda this process takes the GPU of its LOCAL_RANK.

        Raises:
            DeviceError: this machine has fewer GPUs than torchrun started processes.
            LostRank: the others can't be reached.
        """
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if device.type == "cuda":
            device = _own_gpu(int(os.environ.get("LOCAL_RANK", "0")))
        if size > 1:
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            with _reaching_others(rank):
                dist.init_process_group(backend, timeout=PATIENCE)
                if device.type == "cuda":  # NCCL allocates its buffers now, while memory is free
                    dist.all_reduce(torch.zeros(1, device=device))
        return cls(rank, size, device)

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes files and reports."""
        return self.rank == 0

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error NCCL would wait here for ranks that may never arrive; the process is about to end anyway.
        if self.size > 1 and error is None:
            dist.destroy_process_group()

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks."""
        if self.size > 1:
            self._reduce(tensor, dist.ReduceOp.SUM)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on the same device; `tensor` is not changed."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        self.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return bool(self.highest(int(flag)))

    def highest(self, value: int) -> int:
        """Return the highest value, 0 to 255, over all ranks."""
        if self.size == 1:
            return value
        highest = torch.tensor([value], dtype=torch.uint8)
        self._reduce(highest, dist.ReduceOp.MAX)
        return int(highest.item())

    def broadcast_object(self, value: T) -> T:
        """Return the main rank's value, which must be picklable; the values of the other ranks are ignored."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.is_main else None]
        with _reaching_others(self.rank):
            dist.broadcast_object_list(box, src=0, device=_CPU)
        found: T = box[0]
        return found

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        self.any(False)

    def _reduce(self, tensor: Tensor, operation: Any) -> None:
        with _reaching_others(self.rank):
            dist.all_reduce(tensor, operation)


def _own_gpu(local_rank: int) -> torch.device:
    visible = torch.cuda.device_count()
    if local_rank >= visible:
        raise DeviceError(
            message(
                "process {number} of this machine finds no GPU of its own: {visible} are visible",
                number=local_rank + 1,
                visible=visible,
            ),
            message("Start {visible} processes here, or check CUDA_VISIBLE_DEVICES and nvidia-smi", visible=visible),
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)  # NCCL and the allocator use the current device
    return device


@contextmanager
def _reaching_others(rank: int) -> Iterator[None]:
    """Raise LostRank for the RuntimeErrors of Gloo, NCCL and the rendezvous when another process has ended."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LostRank(
            f"rank {rank} can't reach the other processes of the training ({reason})",
            "Run the same command again: it resumes from the last checkpoint",
        ) from error

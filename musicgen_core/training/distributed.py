"""The processes of one training, one a GPU: who this one is, and the little that they tell one another."""

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
"""How long ranks wait for one another: longer than a compilation, a model's download, or a save that is tried again and
again while a storage is down. Only a host that vanishes or a rank that hangs is noticed this late; a process that ends
closes its connections, which is noticed at once."""

T = TypeVar("T")
_CPU = torch.device("cpu")


class LostRank(TrainingError):
    """The other processes can't be reached. Mostly a consequence: what ended one of them is the cause."""


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from one of them. As a context it leaves the group at the end.

    Every method but `alone` and `from_environment` is to be called by all ranks in the same order. For one process
    they do nothing. What is no gradient travels between CPUs, so that asking `any` each step never waits for a GPU,
    and a rank that ended shows there at once.

    Attributes:
        rank: of this process, from 0, over all machines.
        size: processes in all.
        device: what this process computes on; under CUDA a GPU of its own.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def alone(cls, device: torch.device = _CPU) -> World:
        return cls(0, 1, device)

    @classmethod
    def from_environment(cls, device: torch.device) -> World:
        """Join the processes that torchrun started beside this one; alone where it started none.

        Args:
            device: cuda or cpu; of the GPUs this process takes the one of its LOCAL_RANK.

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
                if device.type == "cuda":  # NCCL takes its memory now, while there is some
                    dist.all_reduce(torch.zeros(1, device=device))
        return cls(rank, size, device)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error NCCL would wait here for ranks that may never come; the process is about to end anyway.
        if self.size > 1 and error is None:
            dist.destroy_process_group()

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the ranks."""
        if self.size > 1:
            self._reduce(tensor, dist.ReduceOp.SUM)

    def sum(self, tensor: Tensor) -> Tensor:
        """→ the sum over the ranks, on the same device; `tensor` stays as it is."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        self.add_up(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return bool(self.highest(int(flag)))

    def highest(self, value: int) -> int:
        """Return the highest value, 0 to 255, that any rank gives."""
        if self.size == 1:
            return value
        said = torch.tensor([value], dtype=torch.uint8)
        self._reduce(said, dist.ReduceOp.MAX)
        return int(said.item())

    def broadcast_object(self, value: T) -> T:
        """→ the main rank's value, which has to be picklable; what the other ranks give is not looked at."""
        if self.size == 1:
            return value
        box: list[Any] = [value if self.is_main else None]
        with _reaching_others(self.rank):
            dist.broadcast_object_list(box, src=0, device=_CPU)
        found: T = box[0]
        return found

    def barrier(self) -> None:
        """Wait until every rank is here."""
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
    torch.cuda.set_device(device)  # NCCL and the allocator go by it
    return device


@contextmanager
def _reaching_others(rank: int) -> Iterator[None]:
    """Gloo, NCCL and the rendezvous all raise RuntimeError, of many kinds, when another process is gone."""
    try:
        yield
    except RuntimeError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LostRank(
            f"rank {rank} can't reach the other processes of the training ({reason})",
            "Run the same command again: it goes on from the last checkpoint",
        ) from error

"""Batches made ahead of their use, so that the GPU never waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import torch

from musicgen_core.data.dataset import Batch
from musicgen_core.prefetch import prefetch


@contextmanager
def prefetched(
    batches: Iterable[Callable[[], Batch]], ahead: int = 2, device: torch.device | None = None
) -> Iterator[Iterator[Batch]]:
    """The batches that `batches` make, in their order, made in threads while those before them are used.

        with prefetched((partial(training_batch, clips, step) for step in steps), device=device) as batches:
            for batch in batches: ...

    Everything random in a batch derives from its arguments, so threads change nothing about it.

    Args:
        ahead: batches held ready beside the one in use, and how many reads the disk is asked for at once.
        device: a CUDA device to pin the batches' memory for; others, and None, pin nothing.

    Raises:
        Exception: what making a batch, or drawing it from `batches`, raised; in its place in the order.
    """
    pin = device is not None and device.type == "cuda"

    def make(batch: Callable[[], Batch]) -> Batch:
        return batch().pinned() if pin else batch()

    with (
        ThreadPoolExecutor(ahead, "batches", *_on(device if pin else None)) as pool,
        closing(prefetch(pool, batches, make, lambda _: 1, limit=ahead + 1)) as results,
    ):
        yield results


def _on(device: torch.device | None) -> tuple[()] | tuple[Callable[..., None], tuple[int]]:
    """What a thread runs first: pinning from another device than the current one would take memory on both."""
    if device is None:
        return ()
    return torch.cuda.set_device, (torch.cuda.current_device() if device.index is None else device.index,)

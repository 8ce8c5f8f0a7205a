"""Prefetching of batches, so that the GPU never waits for them."""

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
    """Provide the results of `batches` in order, computed ahead in threads.

        with prefetched((partial(training_batch, clips, step) for step in steps), device=device) as batches:
            for batch in batches: ...

    All randomness of a batch derives from its arguments, so threading doesn't affect the result.

    Args:
        ahead: batches held ready beside the one in use, which is also the number of concurrent disk reads.
        device: CUDA device for which to pin the batches' memory; nothing is pinned for other devices and None.

    Raises:
        Exception: any exception of a batch or of the iterator `batches`, at its position in the order.
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
    """Return a thread initializer that sets the device: pinning from another one would take memory on both."""
    if device is None:
        return ()
    return torch.cuda.set_device, (torch.cuda.current_device() if device.index is None else device.index,)

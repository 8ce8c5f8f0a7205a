"""Hand out the finished frames of a batch while later ones are generated."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from musicgen_core.codes import CodeShape
from musicgen_core.devices import start_to_host
from musicgen_core.model.decoder import undelay

OnFrames = Callable[[Tensor], None]
"""Called with the codes [B, K, new frames] of the next frames of each sample of a batch, on the CPU"""
COPIED_FRAMES = 10
"""Frames copied from the device at a time: 0.2 s of music, and on a GPU steps that stay queued behind the copy"""


class FinishedFrames:
    """Copies frames to the CPU once the delay pattern has completed them.

    On a GPU a copy is started behind the steps that are queued, and is delivered when the next one is started: the GPU
    always has work, and the caller is at most two copies ahead of it.

    Args:
        listener: receives the frames, each once and in order.
        shape: of the codes.
        known: the number of frames that are given and not handed out.
    """

    def __init__(self, listener: OnFrames, shape: CodeShape, known: int) -> None:
        self._listener, self._shape, self._copied = listener, shape, known
        self._copy: tuple[Tensor, torch.cuda.Event | None] | None = None

    def follow(self, sequence: Tensor, begin: int, finished: int) -> None:
        """Copy the frames that are new, if there are enough.

        Args:
            sequence: [B, K, steps], the delayed codes of a window.
            begin: the frame at which the window begins.
            finished: the number of frames that are complete, of the whole sample.
        """
        if finished - self._copied < COPIED_FRAMES:
            return
        self._deliver()
        new = undelay(sequence[:, :, self._copied - begin :], self._shape, finished - self._copied)
        self._copied, reached = finished, None
        on_host = start_to_host(new)
        if new.is_cuda:
            reached = torch.cuda.Event()
            reached.record()
        self._copy = on_host, reached

    def finish(self, codes: Tensor) -> None:
        """Hand out the rest of the codes [B, K, frames], which are on the CPU."""
        self._deliver()
        if codes.shape[-1] > self._copied:
            self._listener(codes[:, :, self._copied :])

    def _deliver(self) -> None:
        if self._copy is None:
            return
        (codes, reached), self._copy = self._copy, None
        if reached is not None:
            reached.synchronize()
        self._listener(codes)

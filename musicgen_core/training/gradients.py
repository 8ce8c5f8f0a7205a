"""The gradients of one optimizer step, from as many clips at once as the GPU's memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen_core.data.dataset import Batch
from musicgen_core.errors import DeviceError
from musicgen_core.language import message
from musicgen_core.model.decoder import TextCondition
from musicgen_core.model.text import TextEncoder
from musicgen_core.training.distributed import World
from musicgen_core.training.dropout import clip_seeds
from musicgen_core.training.model import TrainingModel
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)
TEXT_STEP = 32
"""Texts are padded to multiples of so many tokens, so that compiled code sees few shapes."""


class StepGradients:
    """Computes gradients micro-batch by micro-batch. Out of memory, it takes smaller ones from there on.

    A clip's loss depends neither on its micro-batch nor on the filling, so nothing else changes.

    Attributes:
        micro: clips in a micro-batch.
    """

    def __init__(self, model: TrainingModel, text: TextEncoder, world: World, micro: int) -> None:
        self._model, self._text, self._world = model, text, world
        self.micro = micro

    def compute(self, batch: Batch, seed: int, epoch: int, clips_in_step: int, scale: float) -> Tensor:
        """Add up the gradients of the mean loss of a step's clips, over all ranks.

        Args:
            batch: this rank's clips of the step; there may be none.
            seed, epoch: of LoRA's dropout.
            clips_in_step: over all ranks.
            scale: what gradients are multiplied by, so that they don't underflow in fp16.

        Returns:
            The step's mean loss, [], unscaled.

        Raises:
            DeviceError: not even one clip fits.
        """
        while True:
            loss = self._attempt(batch, seed, epoch, clips_in_step, scale)
            if not self._world.any(loss is None):
                break
            del loss
            self._take_less(self._world.any)
        assert loss is not None
        self._world.add_up(self._model.flat.gradient)
        return self._world.sum(loss)

    def validation_losses(self, batch: Batch) -> Tensor:
        """→ [B, K]. Out of memory, this rank takes less from here on.

        Raises:
            DeviceError: not even one clip fits.
        """
        while (losses := self._attempt_validation(batch)) is None:
            self._take_less(bool)
        return losses

    @torch.no_grad()
    def _attempt_validation(self, batch: Batch) -> Tensor | None:
        try:
            text = self._encode(batch.texts)
            codes, frames = self._to_device(batch)
            parts = [slice(start, start + self.micro) for start in range(0, len(codes), self.micro)]
            losses = [self._model.losses(codes[part], frames[part], _rows(text, part), None) for part in parts]
            return torch.cat(losses)
        except torch.OutOfMemoryError:
            return None

    def _attempt(self, batch: Batch, seed: int, epoch: int, clips_in_step: int, scale: float) -> Tensor | None:
        """None: out of memory. The error isn't kept, since it would keep what the attempt had allocated."""
        try:
            self._model.zero_grad()
            loss = torch.zeros((), device=self._model.device)
            if not len(batch.codes):
                return loss
            text = self._encode(batch.texts)
            codes, frames = self._to_device(batch)
            seeds = clip_seeds(seed, epoch, batch.hashes.tolist()).to(codes.device, non_blocking=True)
            for start in range(0, len(codes), self.micro):
                part = slice(start, start + self.micro)
                losses = self._model.step(
                    codes[part], frames[part], _rows(text, part), seeds[part], scale / clips_in_step
                )
                loss += losses.mean(dim=1).sum() / clips_in_step
            return loss
        except torch.OutOfMemoryError:
            return None

    def _take_less(self, any_rank: Callable[[bool], bool]) -> None:
        """Make room: without CUDA graphs of other shapes first, then with smaller micro-batches."""
        if any_rank(self._model.release()):
            logger.info("out of GPU memory: the CUDA graphs made so far are given up")
        elif self.micro > 1:
            self.micro = -(-self.micro // 2)
            logger.warning("out of GPU memory: micro-batches are of %s from here on", counted(self.micro, "clip"))
        elif not self._model.execution.checkpointing:
            self._model.execution = replace(self._model.execution, checkpointing=True)
            logger.warning("out of GPU memory: activations are computed twice from here on")
        else:
            raise DeviceError(
                message(
                    "one clip at a time, with activations computed twice, doesn't fit the memory that is free "
                    "on the GPU"
                ),
                message("Stop other programs on the GPU, or give a smaller --segment-seconds or --model"),
            )

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self._model.device
        return batch.codes.to(device, non_blocking=True), batch.frames.to(device, non_blocking=True)

    def _encode(self, texts: Sequence[str | None]) -> TextCondition:
        condition = self._text.encode(texts)
        if not self._model.execution.compile:
            return condition
        filling = -condition.mask.shape[1] % TEXT_STEP
        return TextCondition(F.pad(condition.states, (0, 0, 0, filling)), F.pad(condition.mask, (0, filling)))


def _rows(text: TextCondition, part: slice) -> TextCondition:
    return TextCondition(text.states[part], text.mask[part])

"""The gradients of one optimizer step, accumulated over micro-batches that fit the GPU's memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musicgen_core.data.crops import Batch
from musicgen_core.errors import DeviceError
from musicgen_core.language import message
from musicgen_core.model.decoder import Condition
from musicgen_core.model.text import TextEncoder
from musicgen_core.training.compute.dropout import clip_seeds
from musicgen_core.training.compute.full_model import FullTrainingModel
from musicgen_core.training.compute.model import TrainingModel
from musicgen_core.training.processes.distributed import World
from musicgen_core.wording import counted

logger = logging.getLogger(__name__)
TEXT_STEP = 32
"""Texts are padded to a multiple of this many tokens, so that compiled code sees few shapes."""


class StepGradients:
    """Computes gradients micro-batch by micro-batch, and switches to smaller ones when memory runs out.

    A clip's loss depends neither on its micro-batch nor on padding, so that the result stays the same.

    Args:
        micro: clips in a micro-batch, to begin with.

    Attributes:
        micro: clips in a micro-batch now.
    """

    def __init__(self, model: TrainingModel | FullTrainingModel, text: TextEncoder, world: World, micro: int) -> None:
        self._model, self._text, self._world = model, text, world
        self.micro = micro

    def compute(self, batch: Batch, seed: int, epoch: int, clips_in_step: int, scale: float) -> Tensor:
        """Compute the gradients of the mean loss of a step's clips, summed over all ranks.

        Args:
            batch: this rank's clips of the step; may be empty.
            seed: seed of LoRA's dropout.
            epoch: the epoch, from 1, on which dropout depends too.
            clips_in_step: clips of the step over all ranks.
            scale: loss scale, a factor of the gradients that prevents underflow in fp16.

        Returns:
            The step's mean loss, [], in nats, unscaled.

        Raises:
            DeviceError: not even a single clip fits the GPU's memory.
        """
        while True:
            loss = self._try_compute(batch, seed, epoch, clips_in_step, scale)
            if not self._world.any(loss is None):
                break
            del loss
            self._reduce_memory(self._world.any)
        assert loss is not None
        self._model.trained.sum_gradients(self._world)
        return self._world.sum(loss)

    def validation_losses(self, batch: Batch) -> Tensor:
        """Return the losses [B, K] of validation clips, in nats, on this rank alone.

        Raises:
            DeviceError: not even a single clip fits the GPU's memory.
        """
        while (losses := self._try_validation(batch)) is None:
            self._reduce_memory(bool)
        return losses

    @torch.no_grad()
    def accompany_validation(self) -> None:
        """Take part in the other ranks' forward pass, for which sharded weights are gathered, with no clip of its own.

        Nothing happens if every rank has the weights.
        """
        if self._model.is_sharded:
            self._model.losses(*self._nothing(), None)

    @torch.no_grad()
    def _try_validation(self, batch: Batch) -> Tensor | None:
        try:
            condition = self._encode(batch)
            codes, frames = self._to_device(batch)
            parts = [slice(start, start + self.micro) for start in range(0, len(codes), self.micro)]
            losses = [self._model.losses(codes[part], frames[part], condition.rows(part), None) for part in parts]
            return torch.cat(losses)
        except torch.OutOfMemoryError:
            self._check_recoverable()
            return None

    def _try_compute(self, batch: Batch, seed: int, epoch: int, clips_in_step: int, scale: float) -> Tensor | None:
        """Return this rank's part of the loss, or None if memory ran out: the error would keep tensors alive."""
        try:
            self._model.zero_grad()
            loss = torch.zeros((), device=self._model.device)
            passes = -(-len(batch.codes) // self.micro)
            if self._model.is_sharded:  # all ranks take as many passes as the one with the most clips
                for _ in range(-(-clips_in_step // (self._world.size * self.micro)) - passes):
                    nothing = self._nothing()
                    self._model.step(*nothing, torch.zeros_like(nothing[1]), 0.0)
            if not passes:
                return loss
            condition = self._encode(batch)
            codes, frames = self._to_device(batch)
            seeds = clip_seeds(seed, epoch, batch.hashes.tolist()).to(codes.device, non_blocking=True)
            for start in range(0, len(codes), self.micro):
                part = slice(start, start + self.micro)
                losses = self._model.step(
                    codes[part], frames[part], condition.rows(part), seeds[part], scale / clips_in_step
                )
                loss += losses.mean(dim=1).sum() / clips_in_step
            return loss
        except torch.OutOfMemoryError:
            self._check_recoverable()
            return None

    def _check_recoverable(self) -> None:
        """Check that the step can be repeated after memory ran out.

        Raises:
            DeviceError: the model is sharded: the other ranks wait for this one within the pass.
        """
        if self._model.is_sharded:
            raise DeviceError(
                message(
                    "micro-batches of {clips} don't fit the memory that is free on the GPU",
                    clips=counted(self.micro, "clip"),
                ),
                message("Give a smaller --batch-size, or --activation-checkpointing on"),
            )

    def _nothing(self) -> tuple[Tensor, Tensor, Condition]:
        """Return codes, frames and condition of a clip without a frame, whose loss and gradients are zero."""
        config = self._model.lm.config
        codes, frames = torch.zeros(1, config.codebooks, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        chroma = torch.zeros(1, config.chroma_frames, dtype=torch.int64) if config.takes_melody else None
        batch = Batch(codes, frames, [None], np.zeros(1, np.uint64), chroma)
        return *self._to_device(batch), self._encode(batch)

    def _reduce_memory(self, any_rank: Callable[[bool], bool]) -> None:
        """Free the CUDA graphs first; then halve the micro-batch; then checkpoint activations."""
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

    def _encode(self, batch: Batch) -> Condition:
        condition = self._text.encode(batch.texts)
        if self._model.execution.compile:
            padding = -condition.mask.shape[1] % TEXT_STEP
            condition = Condition(F.pad(condition.states, (0, 0, 0, padding)), F.pad(condition.mask, (0, padding)))
        chroma = batch.chroma
        return replace(condition, chroma=None if chroma is None else chroma.to(self._model.device, non_blocking=True))


def perplexity(loss: float) -> float:
    """Return exp(loss) of a loss in nats, which is clamped to 700, as a diverged run's would overflow."""
    return math.exp(min(loss, 700.0))

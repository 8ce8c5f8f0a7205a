"""The clips of each step and of validation, as batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_core.codes import CODEBOOKS, FRAME_RATE
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Batch, Clips, join, split, training_batch, validation_batch
from musicgen_core.training.prior_preservation import prior_share
from musicgen_core.training.processes.distributed import World

PADDING_FRAMES = 250
"""Sequences are padded to a multiple of this many frames, 5 s, because code is compiled for each shape."""


@dataclass(frozen=True)
class DataOrder:
    """The clips of each step: a new permutation each epoch, each clip once; an epoch's last step may be smaller.

    Attributes:
        clips: number of training clips.
        per_step: clips in a step.
        epochs: epochs to train.
        max_steps: a limit of the steps, or None.
        seed: seed of the permutations.
    """

    clips: int
    per_step: int
    epochs: int
    max_steps: int | None
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.clips / self.per_step)

    @property
    def total_steps(self) -> int:
        return min(self.steps_per_epoch * self.epochs, self.max_steps or self.steps_per_epoch * self.epochs)

    def epoch_of(self, step: int) -> int:
        """Return the epoch, from 1, of a step, from 1."""
        return (step - 1) // self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        """Return whether an epoch ends with this step, also one that max_steps cuts short."""
        return step % self.steps_per_epoch == 0 or step == self.total_steps

    def epochs_done(self, step: int) -> int:
        """Return how many epochs have ended after this step."""
        if not step:
            return 0
        return self.epoch_of(step) - (not self.ends_epoch(step))

    def positions(self, step: int) -> list[int]:
        """Return the indices, among the training clips, of the clips of a step, from 1."""
        order = _order(self.seed, self.epoch_of(step), self.clips)
        start = (step - 1) % self.steps_per_epoch * self.per_step
        return [int(position) for position in order[start : start + self.per_step]]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, clips: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(clips)


class Batches:
    """The batches of a run on this rank.

    Args:
        clips: all clips of the tokens, which are split into training and validation clips here.
        prior: clips that the base model generated, for `prior_preservation`; used for training only.
        settings: the run's settings.
        per_step: clips in a step, on all ranks.
        cfg_dropout: fraction of clips trained under the null condition.
        word_dropout: fraction of words dropped from the other clips' texts.
        is_compiled: whether lengths are padded, so that code is compiled for few shapes.
        world: the processes that share the run.

    Attributes:
        training_clips: indices of the training clips of the tokens.
        validation_clips: indices of the validation clips.
        order: the clips of each step.
    """

    def __init__(
        self,
        clips: Clips,
        prior: Clips | None,
        settings: TrainSettings,
        per_step: int,
        cfg_dropout: float,
        word_dropout: float,
        is_compiled: bool,
        world: World,
    ) -> None:
        self.clips = clips if prior is None else join(clips, prior)
        self._prior = prior  # keeps its shard's cache entry alive
        self._settings, self._is_compiled, self._world = settings, is_compiled, world
        self._cfg_dropout, self._word_dropout = cfg_dropout, word_dropout
        self.training_clips, self.validation_clips = split(clips.hashes, settings.validation_fraction)
        self._epoch_clips = self.training_clips
        if prior is not None:
            share = np.arange(prior_share(len(self.training_clips), settings.prior_preservation))
            self._epoch_clips = np.concatenate([self.training_clips, len(clips) + share % len(prior)])
        self.order = DataOrder(
            clips=len(self._epoch_clips),
            per_step=per_step,
            epochs=settings.num_epochs,
            max_steps=settings.max_steps,
            seed=settings.seed,
        )

    def of_step(self, step: int) -> Batch:
        """Return this rank's clips of a step, every `world.size`-th; possibly none in an epoch's last step."""
        indices = self.indices_of(step)[self._world.rank :: self._world.size]
        if not indices:
            return Batch(torch.zeros(0, CODEBOOKS, 0), torch.zeros(0), [], self.clips.hashes[:0])
        return training_batch(
            clips=self.clips,
            indices=indices,
            segment_frames=self._segment_frames,
            cfg_dropout=self._cfg_dropout,
            seed=self._settings.seed,
            epoch=self.order.epoch_of(step),
            columns=self._padded_frames(indices),
            word_dropout=self._word_dropout,
        )

    def of_validation(self, indices: list[int]) -> Batch:
        """Return a batch of these clips, whole up to the length of a segment."""
        return validation_batch(self.clips, indices, self._segment_frames, self._padded_frames(indices))

    def indices_of(self, step: int) -> list[int]:
        """Return the indices of the clips of a step, on all ranks."""
        return [int(self._epoch_clips[position]) for position in self.order.positions(step)]

    def audio_seconds(self, indices: list[int]) -> float:
        """Return the seconds of audio that a step takes from these clips."""
        return float(self._frames_of(indices).sum()) / FRAME_RATE

    @property
    def _segment_frames(self) -> int:
        return round(self._settings.segment_seconds * FRAME_RATE)

    def _frames_of(self, indices: list[int]) -> NDArray[np.int32]:
        return np.minimum(self.clips.frames[indices], self._segment_frames)

    def _padded_frames(self, indices: list[int]) -> int | None:
        """Return the frames that a batch is padded to; None for its longest clip."""
        if not self._is_compiled:
            return None
        longest = int(self._frames_of(indices).max())
        return min(self._segment_frames, -(-longest // PADDING_FRAMES) * PADDING_FRAMES)

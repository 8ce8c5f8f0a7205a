"""The size of a step and its execution, by the GPU's memory, and the clips of each step and of validation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import Trained, TrainSettings
from musicgen_core.data.crops import Batch, training_batch, validation_batch
from musicgen_core.data.dataset import Clips, SplitBy, join, split
from musicgen_core.data.training_text import TextVariation
from musicgen_core.devices import can_compile, check_fp8, compute_dtype, memory_gib
from musicgen_core.errors import ConfigError
from musicgen_core.language import message
from musicgen_core.learning_settings import EFFECTIVE_BATCH
from musicgen_core.training.compute.execution import Execution
from musicgen_core.training.prior_preservation import prior_share
from musicgen_core.training.processes.distributed import World

PADDING_FRAMES = 250
"""Sequences are padded to a multiple of this many frames, 5 s, because code is compiled for each shape."""


@dataclass(frozen=True)
class BatchSize:
    """The clips of an optimizer step.

    Attributes:
        micro: clips in a micro-batch.
        accumulation: micro-batches of a GPU in an optimizer step.
        gpus: GPUs that share a step.
    """

    micro: int
    accumulation: int
    gpus: int = 1

    @property
    def effective(self) -> int:
        """Clips in an optimizer step."""
        return self.micro * self.accumulation * self.gpus


@dataclass(frozen=True)
class Preset:
    """The micro-batch that fits a GPU, with musicgen-large and clips of 30 s.

    Attributes:
        gib: GPU memory from which this applies, in GiB.
        micro: clips in a micro-batch.
        checkpointing: whether activations have to be recomputed.
    """

    gib: float
    micro: int
    checkpointing: bool


# Measured on an H200: 6.5 GiB for the model, and 3.7 GiB per clip with fused kernels, 6.2 GiB without; 0.5 GiB per
# clip with activation checkpointing.
PRESETS = [
    Preset(120, 16, checkpointing=False),  # H200
    Preset(70, 4, checkpointing=False),  # A100 80 GB, H100
    Preset(28, 2, checkpointing=False),  # V100 32 GB, A100 40 GB
    Preset(20, 1, checkpointing=False),  # RTX 4090, L4, A10
    Preset(0, 1, checkpointing=True),  # T4 16 GB
]

# Measured on an H200 with AdamW: 103 GiB without checkpointing and 54.5 GiB with it, at 8 clips.
FULL_PRESETS = [
    Preset(120, 8, checkpointing=False),  # H200
    Preset(70, 8, checkpointing=True),  # A100 80 GB, H100
    Preset(0, 4, checkpointing=True),
]
"""The same for training all weights."""


def preset_of(device: torch.device, trained: Trained = "lora") -> Preset:
    """Return the preset of a device; a CPU has micro-batches of 2 and no checkpointing.

    Args:
        trained: whether an adapter or all weights are trained.
    """
    if device.type != "cuda":
        return Preset(0, 2, checkpointing=False)
    presets = {"lora": PRESETS, "all": FULL_PRESETS}[trained]
    return next(preset for preset in presets if memory_gib(device) >= preset.gib)


def resolve_batch_size(settings: TrainSettings, device: torch.device, gpus: int | None = None) -> BatchSize:
    """Return the batch size, with micro-batch and accumulation chosen for 16 clips per step where they aren't set.

    Args:
        device: whose memory bounds the micro-batch.
        gpus: the GPUs of all machines; by default those of this machine, from the settings.

    Raises:
        ConfigError: the given values don't divide 16.
    """
    micro, accumulation, gpus = settings.batch_size, settings.gradient_accumulation_steps, gpus or settings.gpus
    if micro != "auto" and accumulation is not None:
        return BatchSize(micro, accumulation, gpus)
    a_gpu, rest = divmod(EFFECTIVE_BATCH, gpus)
    if rest or not a_gpu:
        raise ConfigError(
            message(
                "the {effective_batch} clips of a step can't be shared evenly among {gpus} GPUs",
                effective_batch=EFFECTIVE_BATCH,
                gpus=gpus,
            ),
            message("Give both batch_size and gradient_accumulation_steps"),
        )
    given = micro if micro != "auto" else accumulation
    if given is None:
        given = min(preset_of(device, settings.train).micro, a_gpu)
    other, rest = divmod(a_gpu, given)
    if rest or not other:
        name = "batch_size" if micro != "auto" else "gradient_accumulation_steps"
        share = f"that each of {gpus} GPUs takes of a step" if gpus > 1 else "of a step"
        raise ConfigError(
            message(
                "{name} {given} doesn't divide the {a_gpu} clips {share}",
                name=name,
                given=given,
                a_gpu=a_gpu,
                share=share,
            ),
            message("Give both batch_size and gradient_accumulation_steps"),
        )
    if micro == "auto" and accumulation is not None:
        return BatchSize(other, accumulation, gpus)
    return BatchSize(given, other, gpus)


def resolve_execution(settings: TrainSettings, device: torch.device) -> Execution:
    """Return precision, compilation and checkpointing for a device.

    Raises:
        DeviceError: FP8 was requested, which the device doesn't support.
    """
    if settings.base_precision == "fp8":
        check_fp8(device)
        precision = "fp8"
    else:
        precision = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}[compute_dtype(device)]
    wanted = device.type == "cuda" if settings.compile_blocks is None else settings.compile_blocks
    checkpointing = settings.activation_checkpointing
    return Execution(
        precision=precision,
        compile=wanted and can_compile(),
        checkpointing=preset_of(device, settings.train).checkpointing if checkpointing is None else checkpointing,
        deterministic=settings.deterministic,
    )


@dataclass(frozen=True)
class DataOrder:
    """The clips of each step: a new permutation each epoch, each clip once; an epoch's last step may be smaller.

    Attributes:
        clips: number of training clips.
        per_step: clips in a step.
        max_steps: a limit of the steps, or None.
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
        split_by: what the validation split holds out as a whole.
        per_step: clips in a step, on all ranks.
        cfg_dropout: fraction of clips trained under the null condition.
        word_dropout: fraction of words dropped from the other clips' texts.
        chroma_frames: frames of a melody's chroma that the model reads; 0 if it takes no melody.
        melody_dropout: fraction of the other clips trained without their melody alone.
        is_compiled: whether lengths are padded, so that code is compiled for few shapes.

    Attributes:
        training_clips: indices of the training clips of the tokens.
        validation_clips: indices of the validation clips.
    """

    def __init__(
        self,
        clips: Clips,
        prior: Clips | None,
        settings: TrainSettings,
        split_by: SplitBy,
        per_step: int,
        cfg_dropout: float,
        word_dropout: float,
        is_compiled: bool,
        world: World,
        chroma_frames: int = 0,
        melody_dropout: float = 0.0,
    ) -> None:
        self.clips = clips if prior is None else join(clips, prior)
        self._prior = prior  # keeps its shard's cache entry alive
        self._settings, self._is_compiled, self._world = settings, is_compiled, world
        self._cfg_dropout, self._word_dropout = cfg_dropout, word_dropout
        self._chroma_frames, self._melody_dropout = chroma_frames, melody_dropout
        self.training_clips, self.validation_clips = split(clips.split_keys(split_by), settings.validation_fraction)
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
            nothing = torch.zeros(0, self._chroma_frames, dtype=torch.int64) if self._chroma_frames else None
            return Batch(torch.zeros(0, self.clips.codebooks, 0), torch.zeros(0), [], self.clips.hashes[:0], nothing)
        return training_batch(
            clips=self.clips,
            indices=indices,
            segment_frames=self._segment_frames,
            cfg_dropout=self._cfg_dropout,
            seed=self._settings.seed,
            epoch=self.order.epoch_of(step),
            columns=self._padded_frames(indices),
            word_dropout=self._word_dropout,
            variation=TextVariation(
                self._settings.merge_text_p, self._settings.drop_desc_p, self._settings.drop_other_p
            ),
            chroma_frames=self._chroma_frames,
            melody_dropout=self._melody_dropout,
        )

    def of_validation(self, indices: list[int]) -> Batch:
        """Return a batch of these clips, whole up to the length of a segment."""
        columns = self._padded_frames(indices)
        return validation_batch(self.clips, indices, self._segment_frames, columns, self._chroma_frames)

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

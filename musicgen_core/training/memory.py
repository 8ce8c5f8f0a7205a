"""Memory and disk space of a run that trains all weights, by the size of the model.

The bytes of weights, gradients and optimizer states follow from their precisions; the rest is estimated from what
training adapters takes (bench/RESULTS.md). Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from musicgen_core.learning_settings import OptimizerName
from musicgen_core.model.model_size import ModelSize

GIB = 2**30
LARGE_WIDTHS = 48 * 2048
"""layers × width of musicgen-large, whose activations were measured"""
CHECKPOINTED_CLIP_GIB = 0.6
"""Activations of a clip of 30 s with activation checkpointing, musicgen-large: blocks' inputs, one block, the logits"""
MICRO = 4
_BESIDE_GIB = 1.5
"""CUDA's context, and the weights of the blocks that are gathered or copied in 16 bits at a time"""
_STATES = {"adamw": 8, "prodigy": 16, "schedulefree": 8, "adamw8bit": 2}
"""Bytes of an optimizer's state for each weight"""
_WEIGHT_AND_GRADIENT = 4 + 4
MOST_GPUS = 8


@dataclass(frozen=True)
class Way:
    """A way of training all weights.

    Attributes:
        options: its command-line options.
        gib: memory of each GPU.
    """

    options: str
    gib: float


def full_training_gib(size: ModelSize, optimizer: OptimizerName = "adamw", gpus: int = 1, micro: int = MICRO) -> float:
    """Return the memory in GiB of each GPU that trains all weights, with activation checkpointing.

    Args:
        gpus: GPUs that share weights, gradients and optimizer state.
        micro: clips of 30 s in a micro-batch.
    """
    shared = size.parameters * (_WEIGHT_AND_GRADIENT + _STATES[optimizer]) / gpus / GIB
    return shared + _BESIDE_GIB + micro * CHECKPOINTED_CLIP_GIB * size.widths / LARGE_WIDTHS


def checkpoint_bytes(size: ModelSize, optimizer: OptimizerName = "adamw") -> int:
    """Return the size of `latest.pt`: weights in fp32 and the optimizer's state."""
    return size.parameters * (4 + _STATES[optimizer])


def ways(size: ModelSize, gpus: int = MOST_GPUS) -> Iterator[Way]:
    """Yield ways of training all weights on up to `gpus` GPUs of one machine, those on one GPU first."""
    yield Way("--train all", full_training_gib(size))
    yield Way("--train all --optimizer adamw8bit", full_training_gib(size, "adamw8bit"))
    for several in (2, 4, 8):
        if several <= gpus:
            yield Way(f"--train all --gpus {several}", full_training_gib(size, gpus=several))

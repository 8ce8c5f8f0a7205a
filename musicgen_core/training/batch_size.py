"""The number of clips in an optimizer step, and how it is computed, by the GPU's memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from musicgen_core.config import EFFECTIVE_BATCH, TrainSettings
from musicgen_core.devices import can_compile, check_fp8, compute_dtype, memory_gib
from musicgen_core.errors import ConfigError
from musicgen_core.language import message
from musicgen_core.training.compute.model import Execution


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


def preset_of(device: torch.device) -> Preset:
    """Return the preset of a device; a CPU has micro-batches of 2 and no checkpointing."""
    if device.type != "cuda":
        return Preset(0, 2, checkpointing=False)
    return next(preset for preset in PRESETS if memory_gib(device) >= preset.gib)


def resolve_batch_size(settings: TrainSettings, device: torch.device, gpus: int | None = None) -> BatchSize:
    """Return the batch size, with micro-batch and accumulation chosen for 16 clips per step where they aren't set.

    Args:
        settings: the run's settings.
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
        given = min(preset_of(device).micro, a_gpu)
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
        checkpointing=preset_of(device).checkpointing if checkpointing is None else checkpointing,
    )

"""Losses of held-out clips with and without the adapter, computed as in the validation of a training run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips, prefetched, validation_batch
from musicgen_core.devices import compute_dtype
from musicgen_core.errors import AdapterError
from musicgen_core.evaluation.comparison import Losses
from musicgen_core.language import message
from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.lora import add_lora, set_adapter_state
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.training.batch_size import preset_of, resolve_execution
from musicgen_core.training.compute.gradients import StepGradients
from musicgen_core.training.compute.model import TrainingModel
from musicgen_core.training.processes.distributed import World
from musicgen_core.wording import counted

OnProgress = Callable[[int, int, str], None]


def clip_losses_of_both(
    model: BaseModel,
    adapter: Adapter,
    clips: Clips,
    indices: Sequence[int],
    segment_frames: int,
    device: torch.device,
    on_progress: OnProgress = lambda done, total, text: None,
) -> tuple[Losses, Losses]:
    """Return the losses of the beginning of each clip, with its text, for the base model and the adapter.

    The model is loaded once: an untrained adapter changes nothing, so the same model is the base model at first. It
    isn't compiled, which would take longer than it saves here.

    Args:
        on_progress: called with the clips done and their total, over both models.

    Returns:
        Losses of base model and adapter, [clips, codebooks] each, in nats per code.

    Raises:
        AdapterError: the adapter doesn't fit the model, or its losses aren't finite.
        DeviceError: not even one clip fits the GPU.
    """
    text = TextEncoder(model.text_encoder, device)
    peft_model = add_lora(load_lm(model, device, compute_dtype(device)), AdapterConfig.from_plain(adapter.config))
    execution = resolve_execution(TrainSettings(compile_blocks=False), device)
    gradients = StepGradients(
        TrainingModel(peft_model, 0.0, execution), text, World.alone(device), preset_of(device).micro
    )
    measure = partial(_losses, gradients, clips=clips, indices=indices, segment_frames=segment_frames, device=device)
    base = measure(on_progress=lambda done: on_progress(done, 2 * len(indices), message("the base model's losses")))
    set_adapter_state(peft_model, adapter.lora, "to evaluate")
    adapted = measure(
        on_progress=lambda done: on_progress(len(indices) + done, 2 * len(indices), message("the adapter's losses"))
    )
    if broken := int((~np.isfinite(adapted)).any(axis=1).sum()):
        raise AdapterError(
            message(
                "with the adapter the losses of {broken} of {clips} aren't finite numbers",
                broken=broken,
                clips=counted(len(indices), "clip"),
            ),
            message("Train it with a lower --learning-rate"),
        )
    return base, adapted


def _losses(
    gradients: StepGradients,
    clips: Clips,
    indices: Sequence[int],
    segment_frames: int,
    device: torch.device,
    on_progress: Callable[[int], None],
) -> Losses:
    """Return the losses, [clips, codebooks]."""
    micro = gradients.micro
    parts = [indices[start : start + micro] for start in range(0, len(indices), micro)]
    making = (partial(validation_batch, clips, part, segment_frames) for part in parts)
    found: list[Losses] = []
    with prefetched(making, device=device) as batches:
        for batch in batches:
            found.append(gradients.validation_losses(batch).double().cpu().numpy())
            on_progress(sum(map(len, found)))
    return np.concatenate(found)

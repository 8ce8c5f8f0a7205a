"""Held-out clips: which ones, their losses with and without the adapter, and the statistics of these."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import TrainSettings
from musicgen_core.data.crops import Batch, prefetched, validation_batch
from musicgen_core.data.dataset import Clips, split
from musicgen_core.devices import compute_dtype
from musicgen_core.errors import AdapterError, ConfigError, TokensError
from musicgen_core.evaluation.request import Comparison, EvaluateSettings
from musicgen_core.generation.render import OnProgress
from musicgen_core.language import message
from musicgen_core.model.adapters import Adapter, AdapterConfig
from musicgen_core.model.lora import add_lora
from musicgen_core.model.text import TextEncoder
from musicgen_core.model.trained_model import Learned, tensors_of
from musicgen_core.model.weights import BaseModel, load_lm
from musicgen_core.run_layout import RunConfig
from musicgen_core.training.batches import preset_of, resolve_execution
from musicgen_core.training.compute.full_model import FullTrainingModel
from musicgen_core.training.compute.gradients import StepGradients, perplexity
from musicgen_core.training.compute.model import TrainingModel
from musicgen_core.training.files.resuming import Lineage, learned_from, lineage_of
from musicgen_core.training.processes.distributed import World
from musicgen_core.wording import counted

CONFIDENCE = 0.95
Losses = NDArray[np.float64]
Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class HeldOut:
    """Clips to evaluate on.

    Attributes:
        indices: indices of the clips, in the order of their hashes.
        total: number of validation clips, of which `indices` may be a subset.
        fraction: share of all clips that is held out.
        segment_seconds: seconds to use from the beginning of each clip.
        is_certain: whether it is known that the adapter wasn't trained on these clips.
        remarks: remarks on this choice, in sentences.
        training: indices of the clips that the adapter has learned from, or may have. Without a run directory, all
            that would be used for training.
    """

    indices: list[int]
    total: int
    fraction: float
    segment_seconds: float
    is_certain: bool
    remarks: list[str]
    training: NDArray[np.int64] = field(compare=False)

    @property
    def segment_frames(self) -> int:
        return round(self.segment_seconds * FRAME_RATE)


def held_out(clips: Clips, settings: EvaluateSettings, trained: RunConfig | None) -> HeldOut:
    """Choose clips by their hashes, so that the choice changes little when archives are added.

    Clips that the adapter's training run, or an earlier run that it started from, was trained on are never chosen.

    Args:
        trained: the config.json of the adapter's training run, if known.

    Raises:
        ConfigError: the runs held nothing out, or were trained on all candidates.
        TokensError: there is only one clip, so none is held out.
    """
    config = trained or RunConfig({})
    fraction = settings.validation_fraction
    if fraction is None:
        default = TrainSettings.model_fields["validation_fraction"].default
        fraction = default if config.held_out_fraction is None else config.held_out_fraction
    seconds = settings.segment_seconds
    if seconds is None:
        seconds = config.values.get("segment_seconds", TrainSettings.model_fields["segment_seconds"].default)
    if not fraction:
        raise ConfigError(
            message("the run of this adapter held no clips out (its validation_fraction is 0)"),
            message("Give --validation-fraction with tokens that it has not learned from"),
        )
    training, everything = split(clips.split_keys(config.split_by if trained else "any_level"), fraction)
    if not len(everything):
        raise TokensError(
            message("there is a single clip in these tokens, so none is held out for validation"),
            message("Tokenize more clips"),
        )
    lineage = lineage_of(trained) if trained is not None else None
    unseen = everything
    if lineage is not None:
        learned = learned_from(clips, lineage.configs)
        training, unseen = learned.nonzero()[0], everything[~learned[everything]]
        if not len(unseen):
            raise ConfigError(
                message(
                    "the adapter has learned from all of the {clips} that it would be judged by: its training "
                    "held out {fraction:.3g} of the clips of these archives",
                    clips=counted(len(everything), "clip"),
                    fraction=lineage.fraction,
                ),
                message("Give tokens of archives that it has not learned from, or train with --validation-fraction"),
            )
    # Hashes are effectively random: the lowest are an unbiased choice, and stable when clips are added.
    chosen = unseen[np.argsort(clips.hashes[unseen])][: settings.max_clips]
    left_out = len(everything) - len(unseen)
    return HeldOut(
        indices=[int(index) for index in chosen],
        total=len(unseen),
        fraction=len(unseen) / len(clips) if left_out else fraction,
        segment_seconds=seconds,
        is_certain=lineage is not None and lineage.unknown is None,
        remarks=list(_remarks(len(unseen), len(chosen), left_out, lineage)),
        training=training,
    )


def _remarks(total: int, chosen: int, left_out: int, lineage: Lineage | None) -> Iterator[str]:
    if chosen < total:
        yield message(
            "Of {total:,} validation clips {chosen:,} were evaluated, as many as asked for, the same each time.",
            total=total,
            chosen=chosen,
        )
    if left_out:
        yield message(
            "{clips:,} more clips were left out: the adapter has learned from them, or may have.",
            clips=left_out,
        )
    if lineage is None:
        yield message(
            "The adapter lies in no run directory, so whether its training held these clips out is not known: "
            "on clips that it has learned from, any adapter looks better."
        )
    elif lineage.unknown is not None:
        yield message(
            "The run started from {adapter}, which lies in no run directory that can be read, so whether "
            "that one has learned from these clips is not known: on clips that it has learned from, any adapter looks "
            "better.",
            adapter=lineage.unknown,
        )


def clip_losses_of_both(
    model: BaseModel,
    adapter: Learned,
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
    lm = load_lm(model, device, compute_dtype(device))
    execution = resolve_execution(TrainSettings(compile_blocks=False), device)
    computation: TrainingModel | FullTrainingModel = (
        TrainingModel(add_lora(lm, AdapterConfig.from_plain(adapter.config)), 0.0, execution)
        if isinstance(adapter, Adapter)
        else FullTrainingModel(lm, execution)
    )
    gradients = StepGradients(computation, text, World.alone(device), preset_of(device).micro)
    micro = gradients.micro
    batches = [
        partial(
            validation_batch, clips, indices[start : start + micro], segment_frames, chroma_frames=model.chroma_frames
        )
        for start in range(0, len(indices), micro)
    ]
    measure = partial(_losses, gradients, batches, device=device)
    base = measure(on_progress=lambda done: on_progress(done, 2 * len(indices), message("the base model's losses")))
    computation.load(tensors_of(adapter), "to evaluate")
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
    batches: Iterable[Callable[[], Batch]],
    device: torch.device,
    on_progress: Callable[[int], None],
) -> Losses:
    """Return the losses, [clips, codebooks]."""
    found: list[Losses] = []
    with prefetched(batches, device=device) as prepared:
        for batch in prepared:
            found.append(gradients.validation_losses(batch).double().cpu().numpy())
            on_progress(sum(map(len, found)))
    return np.concatenate(found)


def compare(base: Losses, adapter: Losses) -> Comparison:
    """Compare losses of the same clips, [clips] each: means and paired difference.

    The difference is paired, so that the difficulty of each clip cancels out.
    """
    differences, clips = adapter - base, len(base)
    base_loss, adapter_loss = float(base.mean()), float(adapter.mean())
    return Comparison(
        base_loss=base_loss,
        adapter_loss=adapter_loss,
        base_perplexity=perplexity(base_loss),
        adapter_perplexity=perplexity(adapter_loss),
        difference=float(differences.mean()),
        standard_error=float(differences.std(ddof=1) / np.sqrt(clips)) if clips > 1 else None,
    )


def confidence_interval(base: Losses, adapter: Losses) -> tuple[float, float] | None:
    """Return Student's t interval of the mean difference adapter − base; None with fewer than two clips.

    Clips are assumed to be independent. The interval is slightly too narrow if several are of the same track.
    """
    from scipy.stats import ttest_rel

    if len(base) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of losses that are equal: their interval is exact
        low, high = ttest_rel(adapter, base).confidence_interval(CONFIDENCE)
    return float(low), float(high)


def verdict_of(interval: tuple[float, float] | None) -> Verdict:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "undecided"
    return "better" if interval[1] < 0 else "worse"

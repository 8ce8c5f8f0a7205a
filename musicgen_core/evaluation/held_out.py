"""Which clips an adapter is judged by: held out by the rule of its training, and the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips, split
from musicgen_core.errors import ConfigError, TokensError
from musicgen_core.evaluation.request import EvaluateSettings


@dataclass(frozen=True)
class HeldOut:
    """Clips to evaluate on.

    Attributes:
        indices: of these clips, in the order of their hashes.
        total: validation clips, of which `indices` may be a part.
        fraction: the share of all clips that is held out.
        segment_seconds: to take from the beginning of each.
        remarks: what to know of this choice, in sentences.
    """

    indices: list[int]
    total: int
    fraction: float
    segment_seconds: float
    remarks: list[str]

    @property
    def segment_frames(self) -> int:
        return round(self.segment_seconds * FRAME_RATE)


def held_out(clips: Clips, settings: EvaluateSettings, trained: Mapping[str, Any] | None) -> HeldOut:
    """Choose them by the clips' hashes, so that the choice changes little when archives are added.

    Args:
        trained: the config.json of the adapter's training, where that is known.

    Raises:
        ConfigError: the training held nothing out.
        TokensError: nothing is held out of a single clip.
    """
    config = trained or {}
    fraction = settings.validation_fraction
    if fraction is None:
        fraction = config.get("validation_fraction", TrainSettings.model_fields["validation_fraction"].default)
    seconds = settings.segment_seconds
    if seconds is None:
        seconds = config.get("segment_seconds", TrainSettings.model_fields["segment_seconds"].default)
    if not fraction:
        raise ConfigError(
            "the training of this adapter held no clips out (its validation_fraction is 0)",
            "Give --validation-fraction with tokens that it has not learned from",
        )
    _, everything = split(clips.hashes, fraction)
    if not len(everything):
        raise TokensError(
            "there is a single clip in these tokens, so none is held out for validation", "Tokenize more clips"
        )
    # Hashes are as good as random: the lowest are a fair choice, and stay it when clips are added.
    chosen = everything[np.argsort(clips.hashes[everything])][: settings.max_clips]
    remarks = list(_remarks(len(everything), len(chosen), fraction, trained))
    return HeldOut([int(index) for index in chosen], len(everything), fraction, seconds, remarks)


def _remarks(total: int, chosen: int, fraction: float, trained: Mapping[str, Any] | None) -> Iterator[str]:
    if chosen < total:
        yield f"Of {total:,} validation clips {chosen:,} were evaluated, the same ones each time (--max-clips)."
    if trained is None:
        yield (
            "The adapter lies in no run directory, so whether its training held these clips out, too, is not known: "
            "on clips that it has learned from, any adapter looks better."
        )
    elif fraction > (kept := trained.get("validation_fraction", 0.0)):
        yield (
            f"The adapter's training held out {kept:.3g} of the clips, and here it is {fraction:.3g}: "
            "it may have learned from some of these, on which any adapter looks better."
        )

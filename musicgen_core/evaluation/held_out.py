"""Choose the clips for an evaluation: those that the adapter's training runs held out, the same ones each time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from musicgen_core.codes import FRAME_RATE
from musicgen_core.config import TrainSettings
from musicgen_core.data.dataset import Clips, split
from musicgen_core.errors import ConfigError, TokensError
from musicgen_core.evaluation.request import EvaluateSettings
from musicgen_core.language import message
from musicgen_core.run_layout import RunConfig
from musicgen_core.training.files.lineage import Lineage, learned_from, lineage_of
from musicgen_core.wording import counted


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
    """

    indices: list[int]
    total: int
    fraction: float
    segment_seconds: float
    is_certain: bool
    remarks: list[str]

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
    _, everything = split(clips.hashes, fraction)
    if not len(everything):
        raise TokensError(
            message("there is a single clip in these tokens, so none is held out for validation"),
            message("Tokenize more clips"),
        )
    lineage = lineage_of(trained) if trained is not None else None
    unseen = everything
    if lineage is not None:
        unseen = everything[~learned_from(clips, lineage.configs)[everything]]
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
            "The training began from {adapter}, which lies in no run directory that can be read, so whether "
            "that one has learned from these clips is not known: on clips that it has learned from, any adapter looks "
            "better.",
            adapter=lineage.unknown,
        )

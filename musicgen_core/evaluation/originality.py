"""Results of comparing generated samples with training clips and with held-out clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from musicgen_core.escaping import one_line
from musicgen_core.language import message

COPIED_SECONDS = 1.0
"""A run this much longer than any of the held-out clips counts as copied"""
ENOUGH_SAMPLES = 8
"""With fewer samples or held-out clips the verdict is said to say little"""
Verdict = Literal["copies", "more", "no more", "unknown"]


@dataclass(frozen=True)
class Excerpt:
    """The longest run that a group of samples has in common with a training clip.

    Attributes:
        archive: name of the clip's archive.
        clip: path of the clip in it.
        clip_start: second at which the run begins in the clip.
        text: the sample's prompt, or the description of a held-out clip.
        start: second at which the run begins in the sample.
        seconds: length of the run.
    """

    archive: str
    clip: str
    clip_start: float
    text: str
    start: float
    seconds: float

    def sentence(self) -> str:
        """Return the run in words."""
        return message(
            "{seconds:.2f} s from second {start:.2f} of “{text}” match {clip} in {archive} from second "
            "{clip_start:.2f}.",
            seconds=self.seconds,
            start=self.start,
            text=one_line(self.text),
            clip_start=self.clip_start,
            clip=self.clip,
            archive=self.archive,
        )


@dataclass(frozen=True)
class Overlap:
    """What a group of samples has in common with the training clips, and repetition within each sample.

    An n-gram is 0.2 s of codes of codebook 0 with at least five distinct ones (`musicgen_core.ngrams`).

    Attributes:
        samples: number of samples.
        shared: mean share of a sample's n-grams that occur in a training clip, from 0 to 1.
        longest_seconds: longest run that a sample has in common with one training clip, in seconds.
        mean_longest_seconds: mean of each sample's longest run, in seconds.
        repeated: mean share of a sample's n-grams that repeat an earlier one of the sample, from 0 to 1.
        nearest: the longest run and the clip it is from; None if nothing is shared.
    """

    samples: int
    shared: float
    longest_seconds: float
    mean_longest_seconds: float
    repeated: float
    nearest: Excerpt | None


@dataclass(frozen=True)
class FeatureDistances:
    """Fréchet distances to the held-out clips in the feature space of musicnn, over windows of 3 s.

    The distance of Kilgour et al. 2019 with another network. It is too large with few windows, equally so for all
    three sets: the distances may be compared with one another, but not with those of other numbers of windows.

    Attributes:
        windows: number of windows of the held-out clips; samples have about as many.
        base: distance of the base model's samples.
        adapter: distance of the adapter's samples.
        held_out: distance of as many other held-out clips, about the lowest to be expected; None if there are too few.
    """

    windows: int
    base: float
    adapter: float
    held_out: float | None


@dataclass(frozen=True)
class Originality:
    """Generated samples beside training clips and held-out clips.

    Attributes:
        seconds: mean length of the samples.
        training_clips: number of training clips that were searched.
        base: the base model's samples. The base model hasn't learned from the clips.
        adapter: the adapter's samples.
        held_out: held-out clips, the baseline: clips of the same kind that can't be copies.
        verdict: "copies" if a sample's longest run is `COPIED_SECONDS` longer than any of the held-out clips; else
            "more" if the adapter's samples share significantly more n-grams with training clips than the held-out
            clips (one-sided Mann-Whitney test at 5 %); "unknown" without training clips.
        distances: None if there are too few windows.
    """

    seconds: float
    training_clips: int
    base: Overlap
    adapter: Overlap
    held_out: Overlap
    verdict: Verdict
    distances: FeatureDistances | None

    def sentence(self) -> str:
        """Return the verdict in words."""
        if self.verdict == "unknown":
            return message(
                "These tokens hold no clip that the adapter has learned from, so whether it copies can't be judged."
            )
        claim = {
            "copies": message("A sample of the adapter may be copied from a training clip"),
            "more": message("The adapter's samples have more in common with the training clips than held-out clips do"),
            "no more": message(
                "The adapter's samples have no more in common with the training clips than held-out clips do"
            ),
        }[self.verdict]
        sentence = message(
            "{claim}: {shared:.1%} of the samples' n-grams occur in training clips and the longest run is "
            "{seconds:.1f} s, against {held_shared:.1%} and {held_seconds:.1f} s of held-out clips.",
            claim=claim,
            shared=self.adapter.shared,
            seconds=self.adapter.longest_seconds,
            held_shared=self.held_out.shared,
            held_seconds=self.held_out.longest_seconds,
        )
        if min(self.adapter.samples, self.held_out.samples) >= ENOUGH_SAMPLES:
            return sentence
        return message("{sentence} So few samples and clips say little.", sentence=sentence)
